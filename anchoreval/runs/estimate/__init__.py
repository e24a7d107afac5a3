"""Estimate what a run will take before anything is computed: prompts, tokens, hours and memory of each arm."""
