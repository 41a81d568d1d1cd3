"""Real data sets, one file each, from official files to entries; `catalogue.py` lists them."""
