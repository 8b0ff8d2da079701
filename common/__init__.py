"""The code that all methods share, so that the comparison is fair. Nothing here depends on a particular method."""
