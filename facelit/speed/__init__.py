"""What makes training steps cheaper without changing what they compute; docs/speed.md says when to turn on what."""

from facelit.speed.data_parallel import FaceDDP

__all__ = ["FaceDDP"]
