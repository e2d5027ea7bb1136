"""Random plans, run by both planners: `one_by_one` says what each of them means."""
