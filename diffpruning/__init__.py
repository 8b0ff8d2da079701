"""Diff pruning (Guo et al., 2021)."""
