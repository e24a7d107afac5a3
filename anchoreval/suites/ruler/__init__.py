"""RULER: its thirteen tasks, made and scored as upstream does."""
