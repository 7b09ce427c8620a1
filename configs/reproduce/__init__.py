"""Published results, reproduced small: claim, command, the numbers that a run gave."""
