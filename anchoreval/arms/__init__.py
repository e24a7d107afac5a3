"""What an arm computes: RoPE precision, positions, attention patterns and kernels, and how they act on a model."""
