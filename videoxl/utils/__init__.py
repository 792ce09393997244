"""What every room uses and none owns: files, digests, registries, clocks, processes. It imports no other room."""
