"""What the benchmark scripts share: timing, memory, the machine, the training step, tables."""
