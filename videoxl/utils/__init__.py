"""Helpers for every folder: files, digests, registries, clocks, processes. It imports no other folder."""
