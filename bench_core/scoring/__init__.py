"""Scores of a strategy on a workload: operating points, accuracy, costs, intervals, comparisons."""
