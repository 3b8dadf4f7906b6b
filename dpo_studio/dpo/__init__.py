"""Direct preference optimisation in pure torch: losses, log-probabilities, batches, trainer."""
