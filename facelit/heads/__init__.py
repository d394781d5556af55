"""Heads: embeddings and labels in, a loss out."""

from facelit.heads.base import Head, HeadOutput
from facelit.heads.center import CenterLoss, CenterLossHead
from facelit.heads.softmax import SoftmaxHead
from facelit.heads.triplet import TripletHead

__all__ = ["CenterLoss", "CenterLossHead", "Head", "HeadOutput", "SoftmaxHead", "TripletHead"]
