"""A run: data, sample order, training state, checkpoints and metrics."""
