"""From what is asked to what stands on disk."""
