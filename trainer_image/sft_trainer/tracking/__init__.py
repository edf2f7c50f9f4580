"""A run's curves in trackers that people look at: TensorBoard's event files, Weights & Biases, trackio."""
