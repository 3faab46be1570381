"""Artifacts by content digest, in a folder or behind a URL."""
