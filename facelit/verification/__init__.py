"""Scores + labels to accuracy, AUC and ROC, and the pictures of them."""

from facelit.verification.protocol import Roc, TarAtFar, VerificationResult, evaluate_pairs

__all__ = ["Roc", "TarAtFar", "VerificationResult", "evaluate_pairs"]
