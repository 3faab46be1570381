"""Reports of a board: page, LaTeX, plots, markdown, terminal."""
