"""Long reliability tests: kill real processes, fill real disks, damage files at random."""
