"""Progressive resizing: a run that begins on small images, whose steps cost less, and ends on whole crops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from facelit.errors import FacelitError
from facelit.storage.images import CROP_SIZE
from facelit.training.run_length import total_steps

_OPTION = "model.resizing"
_SMALLEST = 32  # VGG16 halves an image five times


@dataclass
class ProgressiveResizing:
    """The sizes a run begins with, as in progressive learning (Tan and Le: EfficientNetV2, ICML 2021, section 4.2).

    The first ``share`` of the optimizer steps is divided equally among the sizes; the remaining steps see whole crops. Validation
    and every tool see whole crops always.

    Args:
        sizes: Sides of the training images in pixels, in the order of use; each at least 32 and less than 112.
        share: The share of the run's steps on smaller images, between 0 and 1.

    Raises:
        FacelitError: There is no size, or one is out of range, or the share is.
    """

    sizes: tuple[int, ...]
    share: float = 0.6

    def __post_init__(self) -> None:
        self.sizes = tuple(self.sizes)
        wrong = [size for size in self.sizes if not _SMALLEST <= size < CROP_SIZE]
        if wrong or not self.sizes:
            given = f", not {wrong[0]}" if wrong else ", and there is none"
            raise FacelitError(f"{_OPTION}.sizes must be sides from {_SMALLEST} to {CROP_SIZE - 1} pixels{given}.")
        if not 0 < self.share < 1:
            raise FacelitError(f"{_OPTION}.share must be between 0 and 1, not {self.share}.")

    def size_at(self, step: int, steps: int) -> int:
        """The side of the images of one optimizer step.

        Args:
            step: The step, from 0.
            steps: All steps of the run.
        """
        stage = int(len(self.sizes) * step / (self.share * max(1, steps)))
        return self.sizes[stage] if stage < len(self.sizes) else CROP_SIZE


class Resizer(Callback):
    """Shrinks a `FaceRecognizer`'s training images as its run demands.

    The size is a function of the step alone: a resumed run, or one on other processes, has that of an uninterrupted one.

    Args:
        resizing: What was asked for.
    """

    def __init__(self, resizing: ProgressiveResizing) -> None:
        self.resizing = resizing
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the run's steps, and tries each size out.

        Raises:
            FacelitError: The run has no end, or the backbone does not take images of one of the sizes.
        """
        self._steps = total_steps(trainer)
        assert isinstance(pl_module.backbone, nn.Module)
        for size in self.resizing.sizes:
            _try_size(pl_module.backbone, size, pl_module.device)

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Shrinks a batch as the step demands.

        Args:
            images: float (N, 3, 112, 112).
            step: The optimizer step, from 0.

        Returns:
            float (N, 3, S, S), in the same memory format.
        """
        size = self.resizing.size_at(step, self._steps)
        return images if size >= images.shape[-1] else shrunk(images, size)


def shrunk(images: Tensor, size: int) -> Tensor:
    """Images of a smaller size, each pixel an average over its area: (N, 3, H, W) to (N, 3, size, size)."""
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


@torch.no_grad()
def _try_size(backbone: nn.Module, size: int, device: torch.device) -> None:
    """Embeds one grey image; in evaluation, which changes no running statistics."""
    was_training = backbone.training
    backbone.eval()
    try:
        parameter = next(backbone.parameters(), torch.zeros(0))
        backbone(torch.zeros(1, 3, size, size, device=device, dtype=parameter.dtype))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FacelitError(
            f"{_OPTION}.sizes: {type(backbone).__name__} does not take images of {size}x{size} ({reason}). Omit the option, or"
            " choose a backbone that does: VGG16, IResNet, AdaFaceIR, MobileFaceNet."
        ) from error
    finally:
        backbone.train(was_training)
