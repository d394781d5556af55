"""Programs of the command line that need no network: checking a dataset, packing it, comparing faces."""
