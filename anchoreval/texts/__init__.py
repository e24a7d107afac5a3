"""The texts that prompts are made of: sources, generated prose, and fitting them to a length."""
