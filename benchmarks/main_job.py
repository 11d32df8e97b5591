"""The main job from raw input to report: the demo and the real section her2_b4.

    SPATIALSCOPE_DATA=… python -m benchmarks.main_job [demo] [her2_b4]

Each run goes through the installed command in a folder of its own; its summary (wall and CPU seconds, measured and
projected peak memory per stage, accuracy where truth is known) becomes results/NAME.json.
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

HERE = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("spatialscope")


def run(name: str, folder: Path) -> dict[str, Any]:
    """Return the summary of one run with its wall time."""
    if name == "demo":
        arguments = ["demo", str(folder), "--json"]
    else:
        arguments = ["run", str(HERE / "studies" / f"{name}.toml"), "--output", str(folder), "--json"]
    start = time.perf_counter()
    finished = subprocess.run([COMMAND, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    wall = time.perf_counter() - start
    summary = json.loads(finished.stdout.splitlines()[-1])
    return {
        "command": "spatialscope " + " ".join(arguments).replace(str(folder), "DIR").replace(str(HERE), "benchmarks"),
        "wall_seconds": round(wall, 1),
        "cores": len(os.sched_getaffinity(0)),
        "stages": summary["stages"],
        "accuracy": summary["accuracy"],
    }


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
