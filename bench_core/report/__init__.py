"""Reports: a board as markdown and in the terminal."""
