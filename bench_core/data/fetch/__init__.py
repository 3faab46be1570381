"""Fetching of data sets from their publishers: sources, downloads, unpacking, and integrity checks."""
