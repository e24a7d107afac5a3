"""Run many copies of a model at once, on one machine or a Ray cluster. Each computes what a single one would."""
