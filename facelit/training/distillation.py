"""A run's teacher: the frozen network that the backbone learns to embed like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from facelit.data.batches import TrainBatch
from facelit.data.datamodule import FaceDataModule
from facelit.distributed import global_batch
from facelit.errors import FacelitError
from facelit.heads import DistillationHead, DistillationLoss, Head, HeadOutput
from facelit.heads.distillation import Distance
from facelit.heads.rows import random_seed
from facelit.training.teacher import Teacher, open_teacher
from facelit.training.teacher_table import Table, teacher_table

View = Literal["augmented", "stored"]

_OPTION = "model.distillation"
_MAP = "distillation.loss.map.weight"
_FINGERPRINT = "teacher"


@dataclass
class DistillationTerm:
    """A teacher's loss added to the head's: ``L + weight * L_D``, with L_D of `facelit.heads.DistillationLoss`.

    What the teacher sees is the "consistent" or the "fixed" teaching of Beyer et al. (Knowledge distillation: A good teacher is
    patient and consistent, CVPR 2022): "augmented" is the very image that the student sees, which costs the teacher's forward
    pass in every step; "stored" is the crop before augmentation, embedded once and kept beside the set. Without augmentation they
    are the same, and the kept embeddings are used.

    Args:
        teacher: A checkpoint of facelit's, imported ones included, or any file that `facelit import` knows.
        weight: The weight of the teacher's loss.
        distance: "cosine", or "squared" of the normalised embeddings, which is twice that.
        view: What the teacher embeds, "augmented" or "stored".

    Raises:
        FacelitError: The weight is not positive, or there is no such distance or view.
    """

    teacher: str
    weight: float = 1.0
    distance: Distance = "cosine"
    view: View = "augmented"

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise FacelitError(f"{_OPTION}.weight must be positive, not {self.weight}.")
        for name, value, known in (("distance", self.distance, Distance), ("view", self.view, View)):
            if value not in get_args(known):
                raise FacelitError(f"{_OPTION}.{name} must be one of {', '.join(get_args(known))}, not {value!r}.")


class Distillation(nn.Module):
    """The teacher of a `FaceRecognizer`; what is trained along is the linear map, where the widths differ.

    The teacher is not part of the module's state: a checkpoint holds its fingerprint, and only `fit` opens its file.

    Args:
        term: What was asked for.

    Attributes:
        loss: The loss; None until `open`.
    """

    def __init__(self, term: DistillationTerm) -> None:
        super().__init__()
        self.term = term
        self.loss: DistillationLoss | None = None
        self._teacher: Teacher | None = None
        self._table: Table | None = None
        self._saved_fingerprint: str | None = None
        self._seed = random_seed()  # now: later, processes may differ in their random state

    def open(self, backbone: nn.Module) -> None:
        """Opens the teacher and makes the loss, before the optimizer is made.

        Raises:
            FacelitError: The file is missing or is not a network that embeds crops; or the backbone's width is unknown.
        """
        if self._teacher is not None:
            return
        width = getattr(backbone, "embedding_dim", None)
        if not isinstance(width, int):
            raise FacelitError(f"{_OPTION} needs to know how long an embedding is: give the backbone embedding_dim.")
        self._teacher = open_teacher(self.term.teacher)
        if self.loss is None:
            self.loss = DistillationLoss(width, self._teacher.embedding_dim, self.term.distance, self._seed)

    def begin(self, trainer: Trainer, device: torch.device) -> None:
        """Makes or finds the table of the teacher's embeddings, if the run uses one.

        Raises:
            FacelitError: The data do not come from facelit's data module, whose crops are known by number; or the run is resumed with
                another teacher.
        """
        assert self._teacher is not None
        if self._saved_fingerprint not in (None, self._teacher.fingerprint):
            raise FacelitError(
                f"{self.term.teacher}: another teacher than the one this run began with (option {_OPTION}.teacher). Resume with that one,"
                " or start a new run from the checkpoint's backbone (--model.init_backbone)."
            )
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, FaceDataModule):
            if self.term.view == "stored" or not data.augmentation.changes:
                self._table = teacher_table(self._teacher, data.reader(), device, trainer.local_rank == 0)
        elif self.term.view == "stored":
            raise FacelitError(
                f'{_OPTION}.view: "stored" needs FaceDataModule, which knows crops by number; with a DataLoader of your own take'
                ' "augmented".'
            )

    def forward(self, output: HeadOutput, embeddings: Tensor, crops: TrainBatch) -> HeadOutput:
        """Adds the teacher's loss, and the metric loss_distillation (unweighted), to what the head computed.

        Args:
            output: The head's.
            embeddings: (N, D) of the student.
            crops: The batch they are of.
        """
        assert self.loss is not None
        with global_batch(crops.global_size):
            loss = self.loss(embeddings, self._targets(crops))
        metrics = {**output.metrics, "loss_distillation": loss.detach()}
        return HeadOutput(output.loss + self.term.weight * loss, metrics)

    def _targets(self, crops: TrainBatch) -> Tensor:
        assert self._teacher is not None
        assert isinstance(crops.images, Tensor)
        if self._table is None or crops.numbers is None:
            return self._teacher.embed(crops.images)
        return torch.from_numpy(self._table[crops.numbers]).to(crops.images.device)

    def save_into(self, own: dict[str, Any]) -> None:
        """Puts the teacher's fingerprint into facelit's own entries of a checkpoint."""
        if self._teacher is not None:
            own[_FINGERPRINT] = self._teacher.fingerprint

    def resume_from(self, state: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
        """Takes a checkpoint's teacher for the run's; and makes room for its map where no teacher is opened, as in validation."""
        self._saved_fingerprint = own.get(_FINGERPRINT)
        if self.loss is None and _MAP in state:
            teacher_dim, width = state[_MAP].shape
            self.loss = DistillationLoss(width, teacher_dim, self.term.distance)


def without_teacher(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's state without what belongs to the teacher's loss, which the module makes once `fit` begins."""
    return {name: value for name, value in state.items() if name != _MAP}


def refuse_without_teacher(head: Head, distillation: Distillation | None) -> None:
    """Rejects a head that has nothing to learn from.

    Raises:
        FacelitError: It is a `DistillationHead`, and there is no teacher.
    """
    if isinstance(head, DistillationHead) and distillation is None:
        raise FacelitError(
            f"model.head DistillationHead learns from a teacher alone: name one, {_OPTION}.teacher FILE."
        )
