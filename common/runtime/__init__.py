"""Files, locks, processes and devices: the lowest layer, which does not depend on methods."""
