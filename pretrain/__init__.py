"""Pre-training: the model, its objectives, and the loop that `glscl pretrain CONFIG` runs."""
