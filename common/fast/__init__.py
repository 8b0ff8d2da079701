"""The same mathematics in less time."""
