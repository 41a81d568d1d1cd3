"""Real data sets: one file each reads the official files as they are distributed, and all write the same shards."""
