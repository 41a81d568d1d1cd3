"""Shards on disk: their manifest, their index, reading, writing and checking them."""
