"""Publishing: what users open of every section is assembled from the stages' current outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spatialscope_dist.errors import StageFailed
from spatialscope_dist.stages.context import Context
from spatialscope_dist.store.documents import read_json, write_json
from spatialscope_dist.store.hashes import section_hashes
from spatialscope_dist.store.ledger import content_key
from spatialscope_dist.store.publish import SectionSources, publish_section
from spatialscope_dist.store.switch import finish_switch

PUBLISHED_AFTER = ("identify", "decompose")
_PROCESS_BYTES, _CELL_BYTES, _SPOT_BYTES = 400 << 20, 430, 700  # measured on 3.7 million cells in a million spots


def projected_bytes(context: Context) -> int:
    """Return what a worker needs to publish the largest section."""
    sections = context.facts.sections.values()
    return _PROCESS_BYTES + max((max(_CELL_BYTES * s.n_cells, _SPOT_BYTES * s.n_spots) for s in sections), default=0)


def publish(context: Context) -> dict[str, str]:
    """Assemble every section whose stage outputs changed since it was last published; return why some could not be.

    A section that could not be published has no hashes, and is tried again when this is next called.

    Raises
    ------
    StageFailed
        When no section of the study could be published.
    """
    units: dict[str, dict[str, Any]] = {}
    keys: dict[str, tuple[Path, str]] = {}
    for section in context.study.sections:
        target = context.place.section(section.name)
        finish_switch(target)
        inputs = {name: context.upstream_key(name, item) for name, item in _sources_of(context, section.name)}
        key = content_key("publish", 1, inputs)
        mark = context.ledger.root / "publish" / f"{section.name}.json"
        if inputs["ingest"] is None or (target.exists() and mark.exists() and read_json(mark) == key):
            continue
        units[section.name] = {"sources": _section_sources(context, section.name), "target": target}
        keys[section.name] = mark, key
    if not units:
        return {}
    for mark, _ in keys.values():
        mark.unlink(missing_ok=True)  # an object store has no switch: what a kill leaves there counts as nothing
    published = context.pool.map(publish_section, units, framework="any", stop_on_failure=False)
    folders = {name: units[name]["sources"] for name in published}
    hashing = {
        name: {"segment": s.segment, "identify": s.identify, "decompose": s.decompose} for name, s in folders.items()
    }
    hashes = context.pool.map(section_hashes, hashing, framework="any", stop_on_failure=False)
    known = read_json(context.place.hashes) if context.place.hashes.exists() else {}
    current = {name: known[name] for name in known if name not in units} | hashes
    names = [section.name for section in context.study.sections if section.name in current]
    write_json(context.place.hashes, {name: current[name] for name in names})
    for name in hashes:
        mark, key = keys[name]
        write_json(mark, key)
    context.pool.take_cost()
    failed = {**published.failed, **hashes.failed}
    if len(failed) == len(context.study.sections):
        raise StageFailed("nothing could be published:\n" + "\n".join(f"- {name}: {failed[name]}" for name in failed))
    for name, reason in failed.items():
        context.events.emit("failed", stage="publish", item=name, reason=reason)
    return failed


def _sources_of(context: Context, section: str) -> Iterator[tuple[str, str]]:
    yield from (("ingest", section), ("segment", section), ("decompose", section), ("reference", "study"))
    yield "identify", context.study.stack_of(section)


def _section_sources(context: Context, section: str) -> SectionSources:
    folders = {name: context.upstream(name, item) for name, item in _sources_of(context, section)}
    reference, identify, ingest = folders["reference"], folders["identify"], folders["ingest"]
    assert ingest is not None
    notes: dict[str, Any] = {"seed": context.study.seed, "study": context.study.name}
    notes["options"] = context.study.options.model_dump(mode="json")
    if identify is not None:
        notes["identify"] = read_json(identify / "summary.json")
    if folders["decompose"] is not None:
        notes["decompose"] = read_json(folders["decompose"] / "summary.json")
    return SectionSources(
        name=section,
        ingest=ingest,
        diameter_um=context.study.section(section).diameter_um,
        segment=folders["segment"],
        identify=None if identify is None else identify / section,
        decompose=folders["decompose"],
        reference=reference,
        types=[] if reference is None else read_json(reference / "types.json"),
        genes=[] if reference is None else read_json(reference / "panel.json")["genes"],
        notes=notes,
    )
