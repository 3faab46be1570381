"""Exit strategies, and the evidence on which they decide."""
