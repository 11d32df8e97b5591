"""Accuracy on data with truth: `python -m benchmarks.accuracy celltypes | morphology | expression [arguments]`."""

from __future__ import annotations

import importlib
import sys

ROOMS = {
    "celltypes": "benchmarks.typing_accuracy",
    "morphology": "benchmarks.typing_morphology",
    "expression": "benchmarks.expression_accuracy",
}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ROOMS:
        sys.exit(f"usage: python -m benchmarks.accuracy {{{' | '.join(ROOMS)}}} [arguments]")
    importlib.import_module(ROOMS[sys.argv[1]]).main(sys.argv[2:])
