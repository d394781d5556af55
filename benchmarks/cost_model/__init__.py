"""The calculated cost of a training step on 1 to 64 GPUs: the arithmetic behind docs/scaling.md."""
