"""Heads that turn frozen tokens into descriptors."""
