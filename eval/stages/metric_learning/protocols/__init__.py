"""Who asks whom, and what counts as right."""
