"""anchoreval."""
