"""What waits for what: an item starts as soon as what its own sections and all sections share is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spatialscope_dist.stages import STAGES
from spatialscope_dist.study import Study

# A stage and its item; WHOLE stands for the stage with all its items.
Node = tuple[str, str]
WHOLE = ""
# What all sections share depends on their inputs, never on whether one of them could be worked through.
OF_ALL_SECTIONS = ("reference", "train")
# Placing a section may start from the place of the one before it.
_ONE_BY_ONE = ("align",)
# From here on a stage makes one thing of all sections.
_TOGETHER_FROM = STAGES.index("interact")


def what_waits(
    study: Study, items: Mapping[str, Sequence[str]], *, apart: Sequence[Sequence[str]] = ()
) -> dict[Node, set[Node]]:
    """Return, for every item of the stages to be run and for every stage as a whole, what it waits for.

    Parameters
    ----------
    study : its sections and stacks
    items : items of each stage, stages in their order
    apart : groups of stages; an item waits for all of every earlier stage of another group
    """
    group = {stage: number for number, stages in enumerate(apart) for stage in stages}
    homes: dict[str, dict[str, str]] = {}  # by stage: which item a section is part of
    waits: dict[Node, set[Node]] = {}
    for stage, names in items.items():
        whole = {one for one in homes if _waits_for_all(study, stage, one) or group.get(one) != group.get(stage)}
        sections = _sections(study, stage, names)
        for name in names:
            own = {(one, home[section]) for one, home in homes.items() for section in sections[name] if section in home}
            waits[stage, name] = {(one, WHOLE) for one in whole} | own
        if stage in _ONE_BY_ONE:
            for before, name in zip(names[:-1], names[1:], strict=True):
                waits[stage, name].add((stage, before))
        waits[stage, WHOLE] = {(stage, name) for name in names}
        homes[stage] = {section: name for name in names for section in sections[name]}
    return waits


def _sections(study: Study, stage: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the sections each item of a stage is made from; none where it is made of all."""
    if stage in OF_ALL_SECTIONS or STAGES.index(stage) >= _TOGETHER_FROM:
        return dict.fromkeys(names, ())
    return study.stacks() if stage == "identify" else {name: (name,) for name in names}


def _waits_for_all(study: Study, stage: str, earlier: str) -> bool:
    """Return whether every item of a stage waits for all items of an earlier one."""
    if stage in OF_ALL_SECTIONS:
        return earlier in OF_ALL_SECTIONS
    if earlier in OF_ALL_SECTIONS or STAGES.index(stage) >= _TOGETHER_FROM:
        return True
    if stage == "identify":
        return study.options.identify.platform_effect == "shared"
    # Sections are published between typing and decomposition, when all of them are typed.
    return (stage, earlier) == ("decompose", "identify")
