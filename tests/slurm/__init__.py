"""Slurm on loopback, for one test: not found by the plain run; `tox -e slurm` runs it."""
