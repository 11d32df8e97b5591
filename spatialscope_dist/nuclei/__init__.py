"""Finding nuclei in a histology image and giving them to spots (SpatialScope, Methods: nucleus segmentation).

Star-convex polygons (StarDist, Schmidt et al., MICCAI 2018): the network gives every pixel a
probability p and distances d_k along 32 rays; the polygon of pixel c has the vertices
c + d_k (sin φ_k, cos φ_k), φ_k = 2πk/32 in (y, x). Greedy suppression keeps a polygon unless it
overlaps a kept, more probable one: |A ∩ B| / min(|A|, |B|) > threshold.

normalise (global percentiles) → resample (to the model's µm/px) → window_models (fixed windows;
StarDist by stardist_model or torch_model, watershed, or a plug-in: window → labels or polygons)
→ candidates (one owner) → suppression (one order, rounds over blocks) → polygons (canonical ids)
→ assign (centroid in spot), paint (label image) and morphology (shape, stain, texture). Nothing
depends on how the image is divided.
"""
