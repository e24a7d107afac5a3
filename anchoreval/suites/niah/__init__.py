"""Needle in a haystack: a grid of lengths and depths."""
