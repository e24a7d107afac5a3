"""What a run will take before anything is computed: prompts, tokens, hours and memory, arm by arm."""
