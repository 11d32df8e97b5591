"""The `spatialscope` command: one sub-command per action and per stage; no logic, no defaults."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatialscope_dist.errors import SpatialScopeError
from spatialscope_dist.location import located, storage_errors
from spatialscope_dist.stages import STAGES

if TYPE_CHECKING:
    from spatialscope_dist.engine.cluster import ClusterSettings
    from spatialscope_dist.study import Study

app = typer.Typer(
    help="Single-cell, whole-transcriptome maps from spatial transcriptomics sections.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StudyPath = Annotated[
    Path, typer.Argument(help="study.toml or its folder, or their URL", parser=located, metavar="STUDY")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="folder or URL for everything that is written; default: the study's own",
        parser=located,
        metavar="PATH",
    ),
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="stage.option=value, overrides the study file")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object per event on stdout")]
Workers = Annotated[int | None, typer.Option("--workers", help="worker processes; default: one per core")]
MemoryLimit = Annotated[str | None, typer.Option("--memory-limit", help="of one worker process, for example 4GiB")]
SchedulerOption = Annotated[
    str | None, typer.Option("--scheduler", help="address or scheduler file of a running Dask scheduler")
]
TlsCa = Annotated[Path | None, typer.Option("--tls-ca", help="authority of a tls:// scheduler, PEM")]
TlsCert = Annotated[Path | None, typer.Option("--tls-cert", help="our certificate for a tls:// scheduler, PEM")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="private key of our certificate, PEM")]
Tls = Annotated[bool, typer.Option("--tls", help="encrypt what workers of our own send, with temporary certificates")]
Reports = Annotated[bool, typer.Option("--performance-reports", help="Dask's report of every stage, in report/")]
Gpus = Annotated[int | None, typer.Option("--gpus", help="GPUs to use; default: all that are found")]

_QUARANTINED = 4
_INTERRUPTED = 130


def main() -> None:
    """Run the command and leave with the exit code of the contract."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Without standalone mode the code of a `typer.Exit`, and that of an interruption, is returned, not raised.
        code = app(standalone_mode=False) or 0
    except SpatialScopeError as error:
        typer.echo(f"{error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            sys.exit(error.exit_code)
        if not isinstance(error, storage_errors()):
            raise
        typer.echo(f"- storage: {error}. Check path or URL, credentials and network; run again to continue.", err=True)
        code = SpatialScopeError.exit_code
    if code == _INTERRUPTED:
        typer.echo("Interrupted. What was committed is kept; run the same command again to continue.", err=True)
    sys.exit(code)


def _version(value: bool) -> None:
    if value:
        from spatialscope_dist import __version__

        typer.echo(f"spatialscope {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Single-cell, whole-transcriptome maps from spatial transcriptomics sections."""


@app.command()
def new(
    study: Annotated[Path, typer.Argument(help="study file to write")],
    reference: Annotated[Path, typer.Option(help="single-cell reference, h5ad")],
    cell_type: Annotated[str, typer.Option("--cell-type", help="obs column of the reference")],
    spaceranger: Annotated[Path | None, typer.Option(help="Space Ranger folder")] = None,
    counts: Annotated[Path | None, typer.Option(help="spot counts, h5ad")] = None,
    image: Annotated[Path | None, typer.Option(help="histology image")] = None,
    nuclei: Annotated[Path | None, typer.Option(help="CSV of nuclei instead of an image")] = None,
) -> None:
    """Write a commented study file."""
    from spatialscope_dist.study_template import write_study_file

    write_study_file(
        study,
        {"spaceranger": spaceranger, "counts": counts, "image": image, "nuclei": nuclei, "reference": reference},
        cell_type=cell_type,
    )
    typer.echo(f"Wrote {study}. Next: spatialscope check {study}", err=True)


@app.command()
def check(study: StudyPath, settings: Settings = None) -> None:
    """Validate every input; all problems at once."""
    from spatialscope_dist import pipeline

    for warning in pipeline.check(_study(study, None, settings)):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo("No problems found.", err=True)


@app.command()
def plan(
    study: StudyPath,
    output: Output = None,
    settings: Settings = None,
    as_json: AsJson = False,
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Show stages, tasks, projected memory of a worker and disk; exit 3 when it does not fit."""
    from spatialscope_dist import pipeline
    from spatialscope_dist.console import show_plan

    loaded = _study(study, output, settings)
    cluster = _cluster(workers, memory_limit, None, None)
    planned = pipeline.plan(loaded, cluster)
    if as_json:
        typer.echo(json.dumps({"event": "plan", "stages": planned, "memory_limit_bytes": cluster.memory_limit_bytes}))
    else:
        show_plan(planned, cluster.memory_limit_bytes)
    pipeline.refuse_what_does_not_fit(planned, cluster, loaded.output)


@app.command()
def run(
    study: StudyPath,
    until: Annotated[str | None, typer.Option("--until", help="last stage")] = None,
    first: Annotated[str | None, typer.Option("--from", help="first stage")] = None,
    scheduler: SchedulerOption = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls: Tls = False,
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    gpus: Gpus = None,
    settings: Settings = None,
    output: Output = None,
    performance_reports: Reports = False,
    as_json: AsJson = False,
) -> None:
    """Run the stages; running again continues."""
    loaded = _study(study, output, settings)
    cluster = _cluster(workers, memory_limit, scheduler, gpus, tls=(tls_ca, tls_cert, tls_key), encrypted=tls)
    _run(loaded, cluster, first=first, until=until, as_json=as_json, performance_reports=performance_reports)


@app.command()
def status(study: StudyPath, output: Output = None, settings: Settings = None, as_json: AsJson = False) -> None:
    """Show per stage what is done, what failed, what the next run would make again, and why."""
    from spatialscope_dist import pipeline
    from spatialscope_dist.console import show_status

    rows = pipeline.status(_study(study, output, settings))
    if as_json:
        typer.echo(json.dumps({"event": "status", "stages": rows}))
    else:
        show_status(rows)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="folder for the simulated study and its results")],
    spots: Annotated[int | None, typer.Option("--spots", help="spots of the simulated section")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a section with known truth, run everything, print the accuracy."""
    from spatialscope_dist.simulate import SimulationSettings, write_once

    settings = SimulationSettings() if spots is None else SimulationSettings(n_spots=spots)
    write_once(settings, folder, seed=seed)
    cluster = _cluster(workers, memory_limit, None, None)
    _run(_study(folder, None, None), cluster, first=None, until=None, as_json=as_json)


@app.command("segment-image")
def segment_image(
    image: Annotated[
        Path, typer.Argument(help="tiff, ome-tiff, svs, jpg, png or zarr", parser=located, metavar="IMAGE")
    ],
    out: Annotated[Path, typer.Argument(help="label image to write, tiff")],
    model: Annotated[str, typer.Option(help="StarDist model folder or official name")],
    pixel_size_um: Annotated[float | None, typer.Option("--pixel-size-um", help="default: from the image")] = None,
    tile: Annotated[int | None, typer.Option(help="edge of a task in model pixels; never changes the result")] = None,
    channel: Annotated[int | None, typer.Option(help="the one channel to look at, counted from 0")] = None,
    backend: Annotated[str | None, typer.Option(help="tensorflow or torch")] = None,
    settings: Settings = None,
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    nuclei: Annotated[Path | None, typer.Option(help="parquet of nuclei to write")] = None,
) -> None:
    """Write the label image of one image, no study needed."""
    from spatialscope_dist.segment_image import segment_one_image
    from spatialscope_dist.study import stage_options

    given = {"model": model, "tile": tile, "channel": channel, "backend": backend}
    options = stage_options("segment", {name: it for name, it in given.items() if it is not None}, settings or ())
    cluster = _cluster(workers, memory_limit, None, None)
    found = segment_one_image(image, out, cluster, options=options, pixel_size_um=pixel_size_um, nuclei=nuclei)
    typer.echo(f"{found.n_nuclei} nuclei → {out}", err=True)
    for place, reason in found.damaged.items():
        typer.echo(f"not looked at: {place}: {reason}", err=True)
    if found.damaged:
        raise typer.Exit(_QUARANTINED)


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        study: StudyPath,
        scheduler: SchedulerOption = None,
        tls_ca: TlsCa = None,
        tls_cert: TlsCert = None,
        tls_key: TlsKey = None,
        tls: Tls = False,
        workers: Workers = None,
        memory_limit: MemoryLimit = None,
        gpus: Gpus = None,
        settings: Settings = None,
        output: Output = None,
        performance_reports: Reports = False,
        as_json: AsJson = False,
    ) -> None:
        loaded = _study(study, output, settings)
        cluster = _cluster(workers, memory_limit, scheduler, gpus, tls=(tls_ca, tls_cert, tls_key), encrypted=tls)
        _run(loaded, cluster, first=name, until=name, as_json=as_json, performance_reports=performance_reports)

    command.__doc__ = f"Run the stage {name} alone; earlier stages must be done."
    return command


for _name in STAGES:
    app.command(_name)(_stage_command(_name))


def _study(path: Path, output: Path | None, settings: list[str] | None) -> Study:
    from spatialscope_dist.study import load_study

    return load_study(path, output=output, settings=settings or ())


def _cluster(
    workers: int | None,
    memory_limit: str | None,
    scheduler: str | None,
    gpus: int | None,
    *,
    tls: tuple[Path | None, Path | None, Path | None] = (None, None, None),
    encrypted: bool = False,
) -> ClusterSettings:
    from spatialscope_dist.engine.cluster import ClusterSettings
    from spatialscope_dist.engine.encryption import Certificates

    return ClusterSettings.of_this_machine(
        workers=workers,
        memory_limit=memory_limit,
        scheduler=scheduler,
        gpus=gpus,
        certificates=Certificates.given(*tls),
        encrypted=encrypted,
    )


def _run(
    study: Study,
    cluster: ClusterSettings,
    *,
    first: str | None,
    until: str | None,
    as_json: bool,
    performance_reports: bool = False,
) -> None:
    from spatialscope_dist import pipeline
    from spatialscope_dist.console import progress, show_summary

    with progress(as_json=as_json) as events:
        try:
            summary = pipeline.run(
                study, cluster, events, first=first, until=until, performance_reports=performance_reports
            )
        except SpatialScopeError as error:
            events.emit("error", text=str(error), exit_code=error.exit_code)
            raise
        events.emit(
            "summary",
            stages=summary.stages,
            report=_text(summary.report),
            accuracy=summary.accuracy,
            generative_quality=summary.generative_quality,
            changed=summary.changed,
            unpublished=summary.unpublished,
        )
    if not as_json:
        show_summary(summary)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
