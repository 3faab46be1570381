"""Workflows on files and boards other than a run."""
