"""Arms of one or several runs against a baseline."""
