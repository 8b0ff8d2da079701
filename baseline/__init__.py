"""Baselines: full fine-tuning, the top layers only, or the head alone."""
