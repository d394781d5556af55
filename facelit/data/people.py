"""Lists of people; they are read in `facelit.storage.people`, which needs no torch."""

from facelit.storage.people import read_people

__all__ = ["read_people"]
