"""Running a suite: plan, stages, evaluation, board."""
