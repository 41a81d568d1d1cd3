"""Shards on disk: their manifest and indexes, and how they are written, read and checked."""
