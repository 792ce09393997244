"""Needle in a haystack: one picture in a long video, and a question about it."""
