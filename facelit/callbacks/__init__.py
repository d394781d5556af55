"""What happens at the moments when Lightning calls."""

from facelit.callbacks.embedding_writer import EmbeddingWriter
from facelit.callbacks.finite_loss import StopOnNonFiniteLoss
from facelit.callbacks.last_checkpoint import LastCheckpoint
from facelit.callbacks.verification import VerificationCallback

__all__ = ["EmbeddingWriter", "LastCheckpoint", "StopOnNonFiniteLoss", "VerificationCallback"]
