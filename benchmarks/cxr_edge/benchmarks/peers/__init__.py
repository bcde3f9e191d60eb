"""What a user would run instead, on the same files, with its parity beside its time."""
