"""What a strategy scores on a workload: operating points, accuracy, costs, intervals, comparisons."""
