"""Questions and answers: the vocabulary of answers, and answering with a classifier."""
