"""A run of a suite: plan, stages, evaluation, board."""
