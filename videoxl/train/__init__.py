"""Training: from a command line to a checkpoint in the published layout."""
