"""Baselines: full fine-tuning, the top layers, random entries, or the head alone."""
