"""Windows of texts, scored token by token."""
