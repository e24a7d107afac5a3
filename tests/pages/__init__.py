"""Generated pages of docs/: commands from the parsers of the command line, keys of cards from their models."""
