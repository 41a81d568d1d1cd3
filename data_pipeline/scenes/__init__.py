"""The embedded data set: generated scenes with exact captions, questions and regions."""
