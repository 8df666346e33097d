"""What only a cluster reads."""
