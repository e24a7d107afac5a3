"""The variables under study: RoPE precision, and the attention kernel that it needs."""
