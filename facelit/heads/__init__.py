"""Heads: embeddings and labels in, a loss out."""

from facelit.heads.adaface import AdaFaceHead
from facelit.heads.arcface import ArcFaceHead
from facelit.heads.base import Head, HeadOutput
from facelit.heads.center import CenterLoss
from facelit.heads.center_head import CenterLossHead
from facelit.heads.combined_margin import CombinedMarginHead
from facelit.heads.cosface import CosFaceHead
from facelit.heads.distillation import DistillationHead, DistillationLoss
from facelit.heads.identity import CenterTerm, IdentityHead
from facelit.heads.margin import MarginHead
from facelit.heads.metric_learning import MetricLearningHead
from facelit.heads.softmax import SoftmaxHead
from facelit.heads.triplet import TripletHead

__all__ = [
    "AdaFaceHead",
    "ArcFaceHead",
    "CenterLoss",
    "CenterLossHead",
    "CenterTerm",
    "CombinedMarginHead",
    "CosFaceHead",
    "DistillationHead",
    "DistillationLoss",
    "Head",
    "HeadOutput",
    "IdentityHead",
    "MarginHead",
    "MetricLearningHead",
    "SoftmaxHead",
    "TripletHead",
]
