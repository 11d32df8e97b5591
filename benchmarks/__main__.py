"""Run every benchmark: `make bench`."""

from benchmarks.main_job import main

main()
