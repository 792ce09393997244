"""The cost of reading a video, and whether it fits: from shapes, before anything is built or read."""
