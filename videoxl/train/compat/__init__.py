"""What older command lines and other libraries expect."""
