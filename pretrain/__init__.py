"""GLSCL pre-training: the model, its objectives, and the loop that `accelerate launch -m pretrain CONFIG` runs."""
