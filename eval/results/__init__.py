"""What all stages share: options, the runner, the result format, intervals, checks of results."""
