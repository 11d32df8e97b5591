"""Stages: one module, one stage, one sub-command; they meet through the store only."""

#: In the order they run: each reads what earlier ones left.
STAGES = (
    "ingest",
    "align",
    "segment",
    "reference",
    "identify",
    "train",
    "decompose",
    "interact",
    "variable",
    "differential",
    "report",
)
