"""In-context recall: keys and values, passkeys, examples."""
