"""What happens at the moments when Lightning calls."""

from facelit.callbacks.embedding_writer import EmbeddingWriter
from facelit.callbacks.finite_loss import StopOnNonFiniteLoss
from facelit.callbacks.last_checkpoint import LastCheckpoint
from facelit.callbacks.model_table import ModelTable
from facelit.callbacks.progress_bar import QuickProgressBar
from facelit.callbacks.progress_log import ProgressLog
from facelit.callbacks.run_report import RunReport
from facelit.callbacks.stop_signals import RunStopped, StopSignals
from facelit.callbacks.verification import VerificationCallback
from facelit.callbacks.weight_average import WeightAverage

__all__ = [
    "EmbeddingWriter",
    "LastCheckpoint",
    "ModelTable",
    "ProgressLog",
    "QuickProgressBar",
    "RunReport",
    "RunStopped",
    "StopOnNonFiniteLoss",
    "StopSignals",
    "VerificationCallback",
    "WeightAverage",
]
