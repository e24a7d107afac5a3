"""A run made again from its header and compared with what stands on disk."""
