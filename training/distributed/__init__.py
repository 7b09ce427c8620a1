"""Training on several processes: they start, agree, monitor each other, and stop together."""
