"""Commands, the demo, recipes and accelerate files: the last room, which no other room imports."""
