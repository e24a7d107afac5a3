"""What prompts are made of."""
