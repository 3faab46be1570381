"""Exit decisions replayed on traces."""
