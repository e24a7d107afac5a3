"""The averages that suites' authors publish."""
