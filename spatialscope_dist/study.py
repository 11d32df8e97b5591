"""What a study is: sections, one reference, options; read from study.toml."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import Location, located, storage_errors, within
from spatialscope_dist.options import (
    DecomposeOptions,
    DifferentialOptions,
    IdentifyOptions,
    IngestOptions,
    InteractOptions,
    ReferenceOptions,
    ReportOptions,
    SegmentOptions,
    TrainOptions,
    VariableOptions,
)
from spatialscope_dist.panel import duplicates
from spatialscope_dist.section_patterns import expand_patterns


@dataclass(frozen=True)
class SectionFacts:
    """Sizes of one section's inputs, read from headers only.

    `n_cells` is a guess made before segmentation; `image_shape` is (channels, height, width).
    """

    n_spots: int
    n_genes: int
    n_stored: int
    n_cells: int
    image_shape: tuple[int, int, int] | None = None
    image_is_tiled: bool = True
    pixel_size_um: float | None = None


@dataclass(frozen=True)
class Facts:
    """Sizes of a study's inputs, from which every projection is made."""

    sections: dict[str, SectionFacts]
    n_reference_cells: int
    n_reference_genes: int
    n_types: int


SPOT_DIAMETER_UM = {"visium": 55.0, "slideseq": 10.0, "merfish": 10.0}
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class StudyHead(BaseModel):
    """The [study] table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field("study", pattern=_NAME)
    seed: int = Field(0, ge=0)


class SectionSpec(BaseModel):
    """One [[section]] table: where a tissue section's inputs lie and what they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=_NAME)
    counts: Location | None = None
    spaceranger: Location | None = None
    platform: Literal["visium", "slideseq", "merfish"] = "visium"
    image: Location | None = None
    pixel_size_um: float | None = Field(None, gt=0)
    spot_diameter_um: float | None = Field(None, gt=0)
    nuclei: Location | None = None
    z_um: float | None = None
    transform: tuple[tuple[float, float, float], ...] = _IDENTITY
    align: Literal["given", "paste"] = "given"
    truth: Location | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SectionSpec:
        if (self.counts is None) == (self.spaceranger is None):
            raise ValueError("exactly one of counts = FILE.h5ad and spaceranger = FOLDER is needed")
        if len(self.transform) != 3:
            raise ValueError("transform needs three rows of three numbers")
        return self

    @property
    def diameter_um(self) -> float:
        """Spot diameter in µm: given, or the platform's own."""
        return self.spot_diameter_um or SPOT_DIAMETER_UM[self.platform]


class ReferenceSpec(ReferenceOptions):
    """The [reference] table."""

    path: Location
    cell_type: str = "cell_type"
    platform: Literal["same", "different", "auto"] = "auto"
    genes: str = "auto"


class StudyOptions(BaseModel):
    """Options of all stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ingest: IngestOptions = IngestOptions()
    segment: SegmentOptions = SegmentOptions()
    identify: IdentifyOptions = IdentifyOptions()
    train: TrainOptions = TrainOptions()
    decompose: DecomposeOptions = DecomposeOptions()
    interact: InteractOptions = InteractOptions()
    variable: VariableOptions = VariableOptions()
    differential: DifferentialOptions = DifferentialOptions()
    report: ReportOptions = ReportOptions()


class Study(BaseModel):
    """A study: its file, its output folder, sections, reference and options."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: Location
    output: Location
    head: StudyHead
    sections: tuple[SectionSpec, ...]
    reference: ReferenceSpec
    options: StudyOptions

    @property
    def name(self) -> str:
        """The study's name."""
        return self.head.name

    @property
    def seed(self) -> int:
        """The seed every key derives from."""
        return self.head.seed

    def section(self, name: str) -> SectionSpec:
        """Return the section of that name."""
        return next(section for section in self.sections if section.name == name)

    def stacks(self) -> dict[str, tuple[str, ...]]:
        """Return the groups of sections that are typed together, by item name.

        Sections that give `z_um` form one stack named 'stack' when there are two or more;
        every other section stands alone under its own name.
        """
        stacked = tuple(section.name for section in self.sections if section.z_um is not None)
        if len(stacked) < 2:
            return {section.name: (section.name,) for section in self.sections}
        alone = {section.name: (section.name,) for section in self.sections if section.z_um is None}
        return {"stack": stacked, **alone}

    def stack_of(self, section: str) -> str:
        """Return the name of the stack a section is typed in."""
        return next(stack for stack, names in self.stacks().items() if section in names)


def load_study(path: Path | str, *, output: Path | str | None = None, settings: Iterable[str] = ()) -> Study:
    """Return the study described by a study.toml file or its folder.

    Parameters
    ----------
    path
        `study.toml`, or the folder that holds it.
    output
        Folder or URL for everything that is written; the study's own folder when None.
    settings
        `stage.option=value` strings that override the file.

    Raises
    ------
    BadInput
        With every problem of the file: unknown keys, bad values, missing tables.
    """
    file = _find_file(located(path))
    raw = _parse(file)
    for setting in settings:
        _apply_setting(raw, setting)
    problems: list[Problem] = []
    raw = _expand(raw, file, problems)
    study = _validate(raw, file, located(output or file.parent).absolute(), problems)
    if problems or study is None:
        raise BadInput(problems)
    return study


def stage_options(stage: str, given: Mapping[str, Any], settings: Iterable[str] = ()) -> Any:
    """Return the options of one stage, without a study file: those given, overridden by `stage.option=value` settings.

    Raises
    ------
    BadInput
        With every bad value.
    """
    raw: dict[str, Any] = {stage: dict(given)}
    for setting in settings:
        _apply_setting(raw, setting)
    problems = [
        Problem("--set", f"{table}.…", f"an option of {stage}", f"Only [{stage}] is used here.")
        for table in raw
        if table != stage
    ]
    options = _model(StudyOptions.model_fields[stage].annotation, raw[stage], f"[{stage}]", problems)
    if problems:
        raise BadInput(problems)
    return options


def _find_file(path: Path) -> Path:
    try:
        file = path / "study.toml" if path.is_dir() else path
        found = file.is_file()
    except storage_errors() as error:
        remedy = "Give every process access to it by its environment, or correct the path or URL."
        raise BadInput(Problem(str(path), str(error), "a study file that can be read", remedy)) from error
    if not found:
        raise BadInput(
            Problem(str(path), "no study file", "study.toml or its folder", "Write one with `spatialscope new`.")
        )
    return file.absolute()


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(Problem(str(file), f"invalid TOML ({error})", "a TOML file", "Mend that line.")) from error


def _apply_setting(raw: dict[str, Any], setting: str) -> None:
    match = re.fullmatch(r"([a-z_]+)\.([a-z_]+)=(.*)", setting)
    if match is None:
        raise BadInput(Problem("--set", repr(setting), "stage.option=value", "For example decompose.n_chains=4."))
    table, key, text = match.groups()
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if not isinstance(raw.setdefault(table, {}), dict):
        expected = "a table of the study file that is there once"
        raise BadInput(Problem("--set", repr(setting), expected, "Change sections in the study file."))
    raw[table][key] = value


def _expand(value: Any, file: Path, problems: list[Problem]) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, file, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, file, problems) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            problems.append(
                Problem(
                    f"{file.name}: {value!r}", f"no environment variable {name}", "it to be set", f"export {name}=…"
                )
            )
        return os.environ.get(name, match.group(0))

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", replace, value)


def _validate(raw: dict[str, Any], file: Path, output: Path, problems: list[Problem]) -> Study | None:
    tables = {"study", "section", "reference", *StudyOptions.model_fields}
    problems.extend(
        Problem(
            f"{file.name}: [{key}]", "an unknown table", f"one of {', '.join(sorted(tables))}", "Remove or rename it."
        )
        for key in raw
        if key not in tables
    )
    head = _model(StudyHead, raw.get("study", {}), "[study]", problems)
    sections = [
        _model(SectionSpec, entry, f"[[section]] {number + 1}", problems)
        for number, entry in enumerate(expand_patterns(_sections(raw, problems), file.parent, problems))
    ]
    reference = _model(ReferenceSpec, raw.get("reference", {}), "[reference]", problems)
    given = {key: raw.get(key, {}) for key in StudyOptions.model_fields}
    stages = {
        key: _model(StudyOptions.model_fields[key].annotation, table, f"[{key}]", problems)
        for key, table in given.items()
    }
    names = [section.name for section in sections if section is not None]
    problems.extend(
        Problem(f"[[section]] {name}", "the name twice", "unique names", "Rename one.") for name in duplicates(names)
    )
    if "stack" in names and sum(section.z_um is not None for section in sections if section is not None) > 1:
        found = "the name of a stack of sections"
        problems.append(Problem("[[section]] stack", found, "another name", "Rename it, or give no z_um."))
    if problems or head is None or reference is None:
        return None
    folder = file.parent
    return Study(
        file=file,
        output=output,
        head=head,
        sections=tuple(_resolve_section(section, folder) for section in sections if section is not None),
        reference=_resolve_reference(reference, folder),
        options=_resolve_options(StudyOptions(**stages), folder),
    )


def _sections(raw: dict[str, Any], problems: list[Problem]) -> list[Any]:
    entries = raw.get("section", [])
    if not isinstance(entries, list) or not entries:
        problems.append(Problem("[[section]]", "none", "at least one table", "Add [[section]] with name and counts."))
        return []
    return entries


def _model(model: Any, table: Any, where: str, problems: list[Problem]) -> Any:
    if not isinstance(table, Mapping):
        problems.append(Problem(where, repr(table), "a table", f"Write {where} on a line of its own."))
        return None
    try:
        return model(**table)
    except ValidationError as error:
        problems.extend(_problem(model, detail, where) for detail in error.errors())
        return None


def _problem(model: Any, detail: Any, where: str) -> Problem:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        valid = ", ".join(model.model_fields)
        return Problem(f"{where} {key}", "an unknown key", f"one of {valid}", "Remove or rename it.")
    if detail["type"] == "missing":
        return Problem(f"{where} {key}", "nothing", "a value", "Add this key.")
    return Problem(f"{where} {key}".strip(), repr(detail["input"])[:120], detail["msg"], "Correct the value.")


def _absolute(path: Path | None, folder: Path) -> Path | None:
    return None if path is None else within(folder, path)


def _resolve_section(section: SectionSpec, folder: Path) -> SectionSpec:
    paths = ("counts", "spaceranger", "image", "nuclei", "truth")
    return section.model_copy(update={name: _absolute(getattr(section, name), folder) for name in paths})


def _resolve_reference(reference: ReferenceSpec, folder: Path) -> ReferenceSpec:
    genes = reference.genes if reference.genes in {"auto", "all"} else str(within(folder, located(reference.genes)))
    return reference.model_copy(update={"path": within(folder, reference.path), "genes": genes})


def _resolve_options(options: StudyOptions, folder: Path) -> StudyOptions:
    pairs = options.interact.pairs
    model = located(options.segment.model)
    update: dict[str, Any] = {}
    if pairs is not None:
        update["interact"] = options.interact.model_copy(update={"pairs": str(within(folder, located(pairs)))})
    if len(model.parts) > 1 or within(folder, model).is_dir():
        update["segment"] = options.segment.model_copy(update={"model": str(within(folder, model))})
    return options.model_copy(update=update)
