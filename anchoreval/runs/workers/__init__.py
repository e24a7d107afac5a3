"""Many copies of a model at once, on one machine or a Ray cluster: what each computes is what one alone would."""
