"""From shards to batches: what a sample is, and how it is written, ordered, read, decoded, masked and batched."""
