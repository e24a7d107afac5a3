"""What is computed: RoPE precision, positions, attention patterns and kernels, and how they act on a model."""
