"""The main job from raw input to report: the demo and the real section her2_b4.

    SPATIALSCOPE_DATA=… python -m benchmarks.main_job [demo] [her2_b4]

Each run goes through the installed command in a folder of its own; its summary (wall and CPU seconds, measured and
projected peak memory of the largest worker per stage, the driver's peak memory up to the end of each stage, accuracy
where truth is known) becomes results/main_job_NAME.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance

HERE = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("spatialscope")


def run(name: str, folder: Path) -> dict[str, Any]:
    """Return the summary of one run with its wall time."""
    if name == "demo":
        arguments = ["demo", str(folder), "--json"]
    else:
        arguments = ["run", str(HERE / "studies" / f"{name}.toml"), "--output", str(folder), "--json"]
    start, driver, summary = time.perf_counter(), {}, {}
    with subprocess.Popen([COMMAND, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            summary = json.loads(line)
            if summary["event"] in {"committed", "skipped"}:
                driver[summary["stage"]] = peak_bytes(process.pid)
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}")
    wall = time.perf_counter() - start
    return {
        **provenance(f"main_job {name}"),
        "runs": "spatialscope " + " ".join(arguments).replace(str(folder), "DIR").replace(str(HERE), "benchmarks"),
        "wall_seconds": round(wall, 1),
        "driver_peak_bytes_by_the_end_of": driver,
        "stages": summary["stages"],
        "accuracy": summary["accuracy"],
    }


def peak_bytes(pid: int) -> int:
    """Return the largest resident size a process has had (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Run the named studies, all that can be run when none is named."""
    names = sys.argv[1:] or (["demo", "her2_b4"] if "SPATIALSCOPE_DATA" in os.environ else ["demo"])
    (HERE / "results").mkdir(exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            result = run(name, Path(folder))
        (HERE / "results" / f"main_job_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result["accuracy"]), f"{result['wall_seconds']} s")


if __name__ == "__main__":
    main()
