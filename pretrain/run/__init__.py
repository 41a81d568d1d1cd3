"""A run's folder: what it writes, how it stops, and how it goes on."""
