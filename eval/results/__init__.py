"""What every stage shares after its scores: the result schema, intervals, verification, comparison and contamination."""
