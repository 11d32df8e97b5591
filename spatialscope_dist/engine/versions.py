"""Whether the workers of a cluster run the same software as this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spatialscope_dist.errors import BadInput, Problem

if TYPE_CHECKING:
    from distributed import Client

_OWN = "spatialscope_dist"
# What a task, its arguments and its result pass through; the scheduler only carries them.
_SCHEDULER = ("python", "dask", "distributed", "msgpack", "cloudpickle", "tornado")
_WORKER = (*_SCHEDULER, "numpy", "pandas", _OWN)
_REMEDY = "Use one environment, or one container image, for the client, the scheduler and every worker."


def require_same_versions(client: Client) -> None:
    """Raise when the scheduler or a worker differs from this process in what tasks depend on.

    Raises
    ------
    BadInput
        Naming every package, every machine and both versions.
    """
    found = client.get_versions(packages=[_OWN])
    here = _packages(found["client"])
    problems = _differences("the scheduler", _SCHEDULER, _packages(found["scheduler"]), here)
    for address, worker in found["workers"].items():
        problems += _differences(f"worker {address}", _WORKER, _packages(worker), here)
    if problems:
        raise BadInput(problems)


def _packages(found: dict[str, Any]) -> dict[str, str | None]:
    packages: dict[str, str | None] = found["packages"]
    # 3.11.9.final.0 and 3.11.2.final.0 understand one another: the third number does not count.
    return {**packages, "python": ".".join(str(packages["python"]).split(".")[:2])}


def _differences(
    where: str, names: tuple[str, ...], there: dict[str, str | None], here: dict[str, str | None]
) -> list[Problem]:
    return [
        Problem(f"{where}: {name}", there.get(name) or "nothing", str(here[name]), _REMEDY)
        for name in names
        if there.get(name) != here[name]
    ]
