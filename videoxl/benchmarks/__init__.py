"""Benchmarks: asking many questions about many videos, and scoring the answers."""
