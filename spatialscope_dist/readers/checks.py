"""Every check of a study's inputs that can be made before anything is written."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spatialscope_dist.errors import BadInput, Problem
from spatialscope_dist.location import content_mark, located
from spatialscope_dist.nuclei.checks import channel_problems
from spatialscope_dist.nuclei.window_models import model_channels
from spatialscope_dist.panel import same_but_for_case
from spatialscope_dist.readers.findings import Findings, some
from spatialscope_dist.readers.naming import Naming, choose_naming, genes_under
from spatialscope_dist.readers.nuclei_table import read_nuclei_table
from spatialscope_dist.readers.pairs import read_pairs
from spatialscope_dist.readers.place_checks import check_on_image, check_positions, check_resolution, check_spacing
from spatialscope_dist.readers.reference import read_reference
from spatialscope_dist.readers.sections import counts_files, read_spots
from spatialscope_dist.readers.table import ReferenceTable, SpotTable
from spatialscope_dist.readers.table_checks import (
    check_given_cells,
    check_labels,
    check_names,
    check_nuclei,
    check_overlap,
    check_values,
)
from spatialscope_dist.readers.truth import read_truth
from spatialscope_dist.study import SectionSpec, Study

if TYPE_CHECKING:
    from spatialscope_dist.readers.images import LazyImage


def study_problems(study: Study) -> tuple[list[Problem], list[str]]:
    """Return every problem of the inputs, and warnings; nothing is written and no slide is loaded.

    Matrices are read once by blocks: a negative value in the last row is found here, not an hour later.
    """
    findings = Findings()
    reference = _check_reference(study, findings)
    tables = {section.name: _check_section(study, section, reference, findings) for section in study.sections}
    spots = {name: table for name, table in tables.items() if table is not None}
    if reference is not None and spots:
        _check_genes(study, reference, spots, findings)
    _check_alignment(study, findings)
    return findings.problems, findings.warnings


def pixel_size_of(spots: SpotTable, image: LazyImage | None) -> float | None:
    """Return µm per unit of the spots' positions: as given, else as the image's own metadata say."""
    return spots.pixel_size_um or (None if image is None else image.pixel_size_um)


def study_naming(study: Study) -> Naming:
    """Return the gene names the study goes by; only names are read, once while the files stay the same.

    Raises
    ------
    BadInput
        When a file cannot be read.
    """
    files = [study.reference.path, *(path for section in study.sections for path in counts_files(section))]
    return _naming(study, tuple(content_mark(path) for path in files if path.exists()))


@lru_cache(maxsize=2)
def _naming(study: Study, stamps: tuple[str, ...]) -> Naming:
    sections = {section.name: read_spots(section).namings for section in study.sections}
    return choose_naming(read_reference(study.reference).namings, sections)


def _check_reference(study: Study, findings: Findings) -> ReferenceTable | None:
    with findings.collecting():
        reference = read_reference(study.reference)
        check_names(reference, findings, rows="cells")
        check_labels(reference, findings, column=study.reference.cell_type, few=study.reference.min_cells_warn)
        check_values(reference, findings)
        return reference
    return None


def _check_section(
    study: Study, section: SectionSpec, reference: ReferenceTable | None, findings: Findings
) -> SpotTable | None:
    spots: SpotTable | None = None
    with findings.collecting():
        spots = read_spots(section, n_cells_column=study.options.identify.n_cells_column)
        findings.warnings.extend(spots.notes)
        check_names(spots, findings, rows="spots (barcodes)")
        check_values(spots, findings)
        check_given_cells(spots, findings)
    if spots is not None:
        with findings.collecting():
            _check_places(study, section, spots, findings)
        if section.nuclei is not None:
            with findings.collecting():
                types = [] if reference is None else reference.types
                where = f"section {section.name}: nuclei {section.nuclei.name}"
                check_nuclei(read_nuclei_table(section.nuclei, section=section.name), spots, types, where, findings)
    if section.truth is not None:
        with findings.collecting():
            check_values(read_truth(section.truth, section=section.name), findings)
    return spots


def _check_places(study: Study, section: SectionSpec, spots: SpotTable, findings: Findings) -> None:
    from spatialscope_dist.readers.images import open_image

    usable = check_positions(spots, findings)
    image = None if spots.image is None else open_image(spots.image)
    pixel_size_um = pixel_size_of(spots, image)
    if pixel_size_um is None:
        assert spots.image is not None
        found = f"no pixel size in the study, and none in {spots.image.name}"
        remedy = "Add pixel_size_um to the section: micrometres per pixel of the image."
        findings.problem(spots.where, found, "the size of a pixel in µm", remedy)
    if image is not None and usable:
        _, height, width = image.shape
        check_on_image(spots, height, width, pixel_size_um=pixel_size_um, findings=findings)
    if pixel_size_um is None:
        return
    if usable:
        check_spacing(section, spots, pixel_size_um, findings)
    if image is not None:
        check_resolution(section, spots, pixel_size_um, study.options.segment, findings)
        if section.nuclei is None and section.platform != "merfish":
            segment, channels = study.options.segment, image.shape[0]
            takes = model_channels(segment.model)
            findings.problems += channel_problems(str(image.path), channels, takes, channel=segment.channel)
        _compare_pixel_sizes(section, spots, image, findings)


def _compare_pixel_sizes(section: SectionSpec, spots: SpotTable, image: LazyImage, findings: Findings) -> None:
    given, own = section.pixel_size_um, image.pixel_size_um
    if given is not None and own is not None and not 0.8 < given / own < 1.25:
        findings.warn(f"{spots.where}: pixel_size_um = {given:g} is used; the image's own metadata say {own:.4g}")


def _check_genes(study: Study, reference: ReferenceTable, spots: dict[str, SpotTable], findings: Findings) -> None:
    naming = choose_naming(reference.namings, {name: table.namings for name, table in spots.items()})
    for name, table in spots.items():
        check_overlap(reference, table, naming, name, findings)
    known = genes_under(reference.namings, naming.reference)
    measured = {gene for name, table in spots.items() for gene in genes_under(table.namings, naming.sections[name])}
    imputed = any(section.platform == "merfish" for section in study.sections)
    usable = [gene for gene in known if imputed or gene in measured]
    if study.reference.genes not in {"auto", "all"}:
        with findings.collecting():
            _check_gene_file(located(study.reference.genes), usable, findings)
    if study.options.interact.pairs is not None:
        with findings.collecting():
            _check_pairs(located(study.options.interact.pairs), usable, findings)


def read_gene_file(path: Path) -> list[str]:
    """Return the genes of a text file with one gene a line, each once.

    Raises
    ------
    BadInput
        When the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        expected = "'auto', 'all', or a text file with one gene a line"
        raise BadInput(Problem("[reference] genes", f"{path} ({error})", expected, "Correct the path.")) from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _check_gene_file(path: Path, usable: list[str], findings: Findings) -> None:
    wanted = read_gene_file(path)
    known = set(usable)
    absent = [gene for gene in wanted if gene not in known]
    if len(absent) == len(wanted):
        found = f"none of the {len(wanted)} genes of {path.name} in both reference and sections ({some(wanted[:3])})"
        remedy = f"Use their names, for example {some(usable[:3])}."
        findings.problem("[reference] genes", found, "genes measured in both", remedy)
    elif absent:
        findings.warn(f"[reference] genes: {len(absent)} of {path.name} are left out, not in both: {some(absent)}")


def _check_pairs(path: Path, usable: list[str], findings: Findings) -> None:
    pairs = read_pairs(path)
    known = set(usable)
    if any(ligand in known and receptor in known for ligand, receptor in pairs):
        return
    genes = sorted({gene for pair in pairs for gene in pair})
    same = same_but_for_case(usable, genes)
    hint = f"; {same} of their {len(genes)} genes match but for case (human against mouse)" if same else ""
    found = f"none of the {len(pairs)} pairs of {path.name} with both genes in reference and sections{hint}"
    remedy = "Give pairs of the species and with the gene names of the study, or remove interact.pairs."
    findings.problem("[interact] pairs", found, "pairs such as " + some(usable[:2]), remedy)


def _check_alignment(study: Study, findings: Findings) -> None:
    for section in study.sections:
        matrix = np.asarray(section.transform)
        where = f"section {section.name}: transform"
        if not np.isfinite(matrix).all() or matrix[2].tolist() != [0, 0, 1] or abs(np.linalg.det(matrix)) < 1e-9:
            found = str([list(row) for row in section.transform])
            findings.problem(where, found, "an invertible affine map with the last row [0, 0, 1]", "Correct it.")
        if section.align == "paste":
            _check_paste(study, section, findings)


def _check_paste(study: Study, section: SectionSpec, findings: Findings) -> None:
    where = f"section {section.name}: align"
    remedy = "Or give its transform, (x, y, 1) → common µm."
    if section is study.sections[0]:
        findings.problem(where, "the first section aligned", "a section before it", f"Change the order. {remedy}")
    if section.transform != SectionSpec.model_fields["transform"].default:
        findings.problem(where, 'both transform and align = "paste"', "one of them", "Remove one.")
    try:
        distribution("paste-modern")
    except PackageNotFoundError:
        install = "Install it: pip install 'spatialscope_dist[align]'."
        findings.problem(where, "PASTE is not installed", "the package paste-modern", f"{install} {remedy}")
