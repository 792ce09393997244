"""Training data: records and other sources, their index, samples, batches."""
