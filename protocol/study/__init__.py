"""Studies: candidates, the plan of their runs, the budget solver, tuning, and running the plan."""
