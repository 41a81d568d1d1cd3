"""From shards to batches: samples are written, ordered, read, decoded, masked and batched."""
