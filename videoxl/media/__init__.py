"""Pictures and videos: choose frames, decode them, resize them, turn them into pixel values."""
