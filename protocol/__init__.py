"""What makes a comparison fair: statistics over runs, budgets, scaling laws, plans of runs."""
