"""Loss by position on long texts."""
