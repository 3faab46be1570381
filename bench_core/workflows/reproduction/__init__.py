"""Recomputation of committed boards and their comparison under the contract for numbers."""
