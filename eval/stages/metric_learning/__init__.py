"""Zero-shot metric learning: descriptors learnt on some classes, measured by retrieval among others."""
