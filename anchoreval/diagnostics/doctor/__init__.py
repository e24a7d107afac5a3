"""What a checkpoint's RoPE, kernels and lengths are."""
