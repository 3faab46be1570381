"""Recording: running a network over a split to produce a trace."""
