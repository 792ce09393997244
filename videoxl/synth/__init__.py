"""A synthetic world of moving pictures: seeded, without downloads, as tensors or as files."""
