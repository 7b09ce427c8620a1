"""The cost of a model: parameters, FLOPs per token, and state; `python -m arch.cost` prints it."""

from arch.cost.totals import Cost, add_objective_cost, compute_cost, mean_cost

__all__ = ["Cost", "add_objective_cost", "compute_cost", "mean_cost"]
