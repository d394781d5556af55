"""Imports other people's networks: recognises their weights, and makes facelit checkpoints from them."""
