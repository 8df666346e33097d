"""A real Slurm on one machine, for tests and for trying things out."""
