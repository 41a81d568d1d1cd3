"""What a number is: ranks of relevant items, neighbours, VQA accuracy and grounding."""
