"""The embedded data set: drawn scenes whose captions, questions, statements and regions are exactly true."""
