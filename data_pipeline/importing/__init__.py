"""What all importers share: entries, official files, plain pickles, re-encoding, labels."""
