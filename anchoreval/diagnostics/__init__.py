"""Measurements of a model without a task."""
