"""Comparison of our methods with other libraries, each in its own environment."""
