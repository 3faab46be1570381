"""Data sets fetched from their publishers: where, how, and whether they arrived whole."""
