"""The command line."""

from facelit.cli.front import TOOLS, TRAINING, main

__all__ = ["TOOLS", "TRAINING", "main"]
