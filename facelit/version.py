"""The version of facelit that checkpoints' exports, cards and reports name."""

__version__ = "0.1.0"
