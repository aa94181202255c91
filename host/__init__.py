"""What a fresh clone needs around the pack: host, environment, server. Standard library only."""
