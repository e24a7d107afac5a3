"""From what a user asks (`Spec`) to records on disk: spec.py, prompts.py, units.py, evaluate.py, in this order."""
