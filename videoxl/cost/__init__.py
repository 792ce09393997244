"""What reading a video costs, and whether it fits: from shapes, before anything is built or read."""
