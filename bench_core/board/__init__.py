"""The board: its tables, files and manifest."""
