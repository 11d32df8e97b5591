"""Benchmarks: figures of quality, time and memory, kept as JSON in results/."""
