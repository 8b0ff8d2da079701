"""The long tests of reliability: real processes are killed, real disks fill up, files are broken at random."""
