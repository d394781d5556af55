"""Code shared by the benchmark scripts: timing, memory, the machine, the training step, tables."""
