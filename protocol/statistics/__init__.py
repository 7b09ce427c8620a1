"""Statistics of comparisons: hypothesis tests, power, verdicts, scaling laws, isoFLOP fits."""
