"""Storage: everything that is written or read of a study's output."""
