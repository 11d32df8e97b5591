"""The whole pipeline on a disk and in an object store, side by side: same hashes, seconds, requests.

    python -m benchmarks.object_storage

The small simulated section of the tests goes from raw input to report twice: in a folder, and with study, image,
reference and output at s3:// of a server of our own on the loopback interface (moto's, a separate process). Then, in
the store, everything once more (nothing is to be done) and once with another option of the last test of the study.
Requests are those the server logged, by method.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from spatialscope_dist.location import located
from tests import small_study
from tests.object_store import ObjectStore, served

HERE = Path(__file__).parent
WORKERS = ["--workers", "2"]
CHANGED = {"interact.n_permutations": 60}


@contextmanager
def counted(log: Path) -> Iterator[Counter[str]]:
    """Yield a counter that, when the block ends, holds the requests the server logged meanwhile, by method."""
    before = log.stat().st_size
    found: Counter[str] = Counter()
    yield found
    with log.open("rb") as lines:
        lines.seek(before)
        found.update(method.decode() for method in re.findall(rb'"(GET|HEAD|PUT|POST|DELETE) ', lines.read()))


def timed(study: Path, output: Path, environment: dict[str, str], **settings: Any) -> dict[str, Any]:
    """Return seconds of a run, CPU seconds of its tasks by stage, which stages it ran, and the hashes it left."""
    start = time.perf_counter()
    command = small_study.command(study, output, *WORKERS, settings=settings)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    ran = [event for event in events if event["event"] == "committed"]
    return {
        "wall_seconds": round(time.perf_counter() - start, 1),
        "stage_seconds": {event["stage"]: event["seconds"] for event in ran},
        "stage_cpu_seconds": {event["stage"]: event["cpu_seconds"] for event in ran},
        "stages_run": [event["stage"] for event in ran],
        "hashes": small_study.hashes(output)["demo"],
    }


def in_store(store: ObjectStore, log: Path, **settings: Any) -> dict[str, Any]:
    """Return what a run from and to the store took, with its requests."""
    with counted(log) as requests:
        study, output = (located(f"{store.bucket}/{name}") for name in ("input", "output"))
        found = timed(study, output, store.environment, **settings)
    return {**found, "requests": dict(sorted(requests.items()))}


def main() -> None:
    """Run it on the disk and in the store, and write what was found."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = small_study.write_small_study(folder / "input")
        local = timed(study, folder / "output", dict(os.environ))
        log = folder / "requests"
        with served(folder / "cache", log=log) as store:
            os.environ.update(store.environment)
            store.files().put(str(study.parent), f"{store.bucket}/input", recursive=True)
            remote, again = in_store(store, log), in_store(store, log)
            changed = in_store(store, log, **CHANGED)
    result = {
        **provenance("object_storage"),
        "server": "moto's S3 server on 127.0.0.1",
        "hashes_equal": local["hashes"] == remote["hashes"],
        "runs": {"local": local, "s3": remote, "s3_again": again, "s3_changed_option": {"set": CHANGED, **changed}},
    }
    (HERE / "results" / "object_storage.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: run["wall_seconds"] for name, run in result["runs"].items()}), result["hashes_equal"])


if __name__ == "__main__":
    main()
