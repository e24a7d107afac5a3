"""From what a user asks (`Spec`) to records on disk: prompts.py, units.py, evaluate.py, in this order."""
