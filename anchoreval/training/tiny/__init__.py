"""The recipe of anchor-tiny."""
