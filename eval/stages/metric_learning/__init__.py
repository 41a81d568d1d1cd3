"""Metric learning: which pictures of classes, identities or places never seen in training stand next to each other."""
