"""Replay of exit decisions on recorded traces."""
