"""Sizes the expression stages' memory projections share."""

from __future__ import annotations

from spatialscope_dist.stages.context import Context

TORCH_WORKER_BYTES = 720 << 20  # process with distributed, zarr, torch and compiled kernels loaded


def projected_panel(context: Context) -> int:
    """Return the most genes the panel can have, before it is chosen."""
    spec, facts = context.study.reference, context.facts
    if spec.genes != "auto":
        return facts.n_reference_genes
    pairs = 1000 if context.study.options.interact.pairs else 0
    targeted = [s.name for s in context.study.sections if s.platform == "merfish"]
    always = max((facts.sections[name].n_genes for name in targeted), default=0)
    chosen = spec.n_variable_genes + spec.n_markers_per_type * facts.n_types + pairs + always
    return min(facts.n_reference_genes, chosen)
