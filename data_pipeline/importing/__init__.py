"""What every importer shares: entries, official files, plain pickles, re-encoding, labels."""
