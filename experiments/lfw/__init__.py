"""Backbones, heads and recipes compared on LFW's own people."""
