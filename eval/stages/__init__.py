"""One folder per stage: `options.py` declares its options, `stage.py` measures."""
