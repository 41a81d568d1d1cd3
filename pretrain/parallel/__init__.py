"""What crosses ranks: gathers with exact gradients, and the check that the ranks exist."""
