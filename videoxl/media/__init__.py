"""Pictures and videos: which frames, decoded by whom, resized how, and as pixel values."""
