"""Run every benchmark that takes minutes: `make bench`."""

import os
import subprocess
import sys

from benchmarks.main_job import main

main()
if "SPATIALSCOPE_DATA" in os.environ:
    for name in ("quality", "throughput", "invariance"):
        subprocess.run([sys.executable, "-m", "benchmarks.segmentation", name], check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.typing_speed"], check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.expression_accuracy"], check=True)
