"""Scores and labels to accuracy, AUC and ROC, and pictures of them."""

from typing import TYPE_CHECKING, Any

from facelit.verification.protocol import Roc, TarAtFar, VerificationResult, evaluate_pairs

if TYPE_CHECKING:
    from facelit.verification.pair_verification import MissingImagesError, PairVerification

__all__ = [
    "MissingImagesError",
    "PairVerification",
    "Roc",
    "TarAtFar",
    "VerificationResult",
    "evaluate_pairs",
]


def __getattr__(name: str) -> Any:
    """Imports torchmetrics, which takes longer than torch, only where the metric is used: `facelit.load` does without."""
    if name not in ("MissingImagesError", "PairVerification"):
        raise AttributeError(f"module 'facelit.verification' has no attribute {name!r}")
    from facelit.verification import pair_verification

    return getattr(pair_verification, name)
