"""What a trained model can do: downstream stages, intervals, and one report."""
