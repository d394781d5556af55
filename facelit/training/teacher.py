"""A frozen network that another one learns from."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelit.backbones.pieces import embed_in_pieces
from facelit.errors import FacelitError
from facelit.importing.checkpoint import read_any
from facelit.inference.checkpoint import restore_backbone
from facelit.inference.model import FaceModel
from facelit.storage.images import CROP_SIZE


class Teacher:
    """A frozen network.

    Args:
        network: Float images in [-1, 1], (N, 3, 112, 112), to embeddings (N, T).
        path: The file it was loaded from.

    Attributes:
        embedding_dim: The length of an embedding, T.
        fingerprint: A hash of the weights.

    Raises:
        FacelitError: It does not embed facelit's crops.
    """

    def __init__(self, network: nn.Module, path: Path) -> None:
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.path = path
        self.fingerprint = FaceModel(network, path, {}, 0).fingerprint
        try:
            shape = self.embed(torch.zeros(2, 3, CROP_SIZE, CROP_SIZE)).shape
        except (RuntimeError, ValueError, TypeError) as error:
            raise FacelitError(
                f"{path}: this network does not take crops of {CROP_SIZE}x{CROP_SIZE} (option model.distillation.teacher):"
                f" {' '.join(str(error).split())[:160]}"
            ) from None
        self.embedding_dim = int(shape[1])

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Embeds images, float (N, 3, 112, 112) in [-1, 1], as L2-normalised float32 (N, T), whatever the run's precision.

        Raises:
            FacelitError: An embedding is NaN or infinite.
        """
        self.network.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            raw = embed_in_pieces(self.network, images.float().contiguous(memory_format=torch.channels_last)).float()
        # On a GPU the check would wait for the device; there a broken teacher ends in a non-finite loss.
        if raw.device.type == "cpu" and not bool(torch.isfinite(raw).all()):
            raise FacelitError(
                f"{self.path}: its embeddings are NaN or infinite (option model.distillation.teacher). Is the file whole?"
            )
        return F.normalize(raw, dim=1)


def open_teacher(path: str) -> Teacher:
    """Opens a checkpoint of facelit's, or anybody's weights or ONNX that `facelit import` knows.

    Raises:
        FacelitError: There is no such file, it is damaged or of no known kind.
    """
    if not Path(path).is_file():
        raise FacelitError(f"{path}: there is no such file (option model.distillation.teacher).")
    return Teacher(restore_backbone(read_any(path), path), Path(path))
