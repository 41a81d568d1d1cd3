"""Fine-tuning: pre-training's loop with another head, other samples and another loss."""
