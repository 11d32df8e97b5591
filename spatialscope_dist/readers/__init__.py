"""Readers: what users have, opened lazily and checked."""
