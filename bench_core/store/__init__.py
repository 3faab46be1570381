"""Artifact stores: artifacts addressed by content digest, in a folder or behind a URL."""
