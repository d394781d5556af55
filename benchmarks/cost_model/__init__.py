"""What a training step costs on 1 to 64 GPUs, on paper: the arithmetic behind docs/scaling.md."""
