"""The embedded data set: drawn scenes whose captions, and later questions and boxes, are exactly true."""
