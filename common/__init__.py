"""What every method shares, so that the comparison is fair. Nothing in here names a method."""
