"""Committed boards recomputed, and compared as closely as the contract for numbers says."""
