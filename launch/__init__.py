"""Commands, the demo, recipes and cluster files: the room that people call, and that no other room imports."""
