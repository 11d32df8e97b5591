"""Stages: one module, one stage, one sub-command; they meet through the store only."""
