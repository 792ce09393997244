"""Compatibility with older command lines and other libraries."""
