"""Small reproductions of published results: the claim, the command and the numbers of one run."""
