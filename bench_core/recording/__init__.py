"""Recording: a network run over a split becomes a trace."""
