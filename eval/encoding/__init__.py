"""Encode images and texts into features, with a cache; score pairs; read attention maps."""
