"""Files, locks, processes, devices: what lies below everything else and knows no method."""
