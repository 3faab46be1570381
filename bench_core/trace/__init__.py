"""Traces: the logits of a network over time, with labels and operation counts, in memory and in files."""
