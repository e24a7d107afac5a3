"""What things cost, each beside a peer in one run."""
