"""Checkpoints on the field's standard verification sets, side by side."""
