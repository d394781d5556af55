"""Verification figures as a torchmetrics metric: embeddings go in batch by batch, in any order, on any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor
from torchmetrics import Metric

from facelit.verification.embeddings import cosine_scores
from facelit.verification.figures import draw_roc, roc_figure
from facelit.verification.protocol import VerificationResult, evaluate_pairs, off_torch


class MissingImagesError(RuntimeError):
    """`compute` was called before `update` had seen every image of the pairs."""


class PairVerification(Metric):
    """LFW's protocol on the cosine similarities of pairs, each distinct image embedded once.

    Every image has a number, and pairs are pairs of numbers. `update` takes embeddings and the numbers of their images, in any
    order. Of several embeddings of one image the first counts, so that a sampler's padding does no harm; images that are in no
    pair are ignored. `compute` gathers the embeddings of all processes, whose shares may differ in size, and gives the same
    figures on each of them.

    Memory: the embeddings in float32, on the device where they were computed. Each process keeps its own share until `compute`.
    With `compute_on_cpu=True`, an option of torchmetrics, they are kept on the CPU, where only gloo can gather them.

    Huang et al., Labeled Faces in the Wild, UMass Amherst TR 07-49, 2007 (View 2, unrestricted).

    Args:
        pairs: Image numbers of each pair, integer array or tensor, shape (num_pairs, 2), not negative.
        is_same: True for genuine pairs, shape (num_pairs,).
        folds: A number of equal blocks in the order of the pairs, or each pair's fold, integer, shape (num_pairs,).
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: Shapes or types are wrong, all pairs are of one kind, or the folds do not match the pairs.

    Example:
        >>> import torch
        >>> from facelit.verification import PairVerification
        >>> pairs = [[0, 1], [0, 2], [2, 3], [1, 3]]  # the numbers of two photos, pair by pair
        >>> metric = PairVerification(pairs, is_same=[True, False, True, False], folds=2)
        >>> metric.update(torch.tensor([[1.0, 0.2], [2.0, 0.4]]), numbers=torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[0.3, 2.0], [0.15, 1.0]]), numbers=torch.tensor([2, 3]))
        >>> metric.compute().summary()
        'accuracy 1.0000 ± 0.0000  AUC 1.0000  EER 0.0000  threshold 1.0000'
    """

    is_differentiable = False
    higher_is_better = None  # accuracy is, the error rate is not
    full_state_update = False

    embeddings: list[Tensor]
    numbers: list[Tensor]

    def __init__(self, pairs: Any, is_same: Any, folds: Any = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pairs = np.asarray(off_torch(pairs))
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
            raise ValueError(f"pairs must be integers of shape (num_pairs, 2), not {pairs.dtype} {pairs.shape}")
        if pairs.size and pairs.min() < 0:
            raise ValueError(f"image numbers must not be negative; pairs contains {pairs.min()}")
        evaluate_pairs(np.zeros(len(pairs)), is_same, folds)  # an error now, not after an epoch
        self.is_same = off_torch(is_same)
        self.folds = off_torch(folds)
        self._images, rows = np.unique(pairs, return_inverse=True)
        self._rows: npt.NDArray[np.int64] = rows.reshape(pairs.shape)
        # Flat, float32: one dimension is all that torchmetrics can gather where a process has no image at all.
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, numbers: Tensor) -> None:
        """Takes a batch.

        Args:
            embeddings: Floating point, shape (N, D), normalised or not.
            numbers: The images' numbers, integer, shape (N,).

        Raises:
            ValueError: Shapes or types are wrong, or D is not that of earlier batches.
        """
        if embeddings.ndim != 2 or numbers.shape != embeddings.shape[:1]:
            raise ValueError(
                f"embeddings must have shape (N, D) and numbers (N,), not {tuple(embeddings.shape)} and {tuple(numbers.shape)}"
            )
        if not embeddings.is_floating_point() or numbers.is_floating_point() or numbers.is_complex():
            raise ValueError(
                f"embeddings must be floating point and numbers integers, not {embeddings.dtype} and {numbers.dtype}"
            )
        held, width = sum(map(len, self.numbers)), embeddings.shape[1]
        if held and sum(map(len, self.embeddings)) != held * width:
            earlier = sum(map(len, self.embeddings)) // held
            raise ValueError(f"embeddings have {width} dimensions, those of earlier batches {earlier}")
        self.embeddings.append(embeddings.detach().float().flatten())
        self.numbers.append(numbers.to(embeddings.device, torch.int64))
        if held + len(numbers) > len(
            self._images
        ):  # only then must some be superfluous: finding out waits for the device
            rows, kept = self._distinct(torch.cat(self.embeddings), torch.cat(self.numbers))
            self.embeddings, self.numbers = [rows.flatten()], [kept]

    def compute(self) -> VerificationResult:
        """The figures, over the embeddings of all processes; call it on each of them.

        Raises:
            MissingImagesError: An image of the pairs was not embedded by any process.
            ValueError: An embedding contains NaN or infinity.
        """
        numbers = _on_cpu(self.numbers)
        if not len(numbers):
            raise MissingImagesError(f"none of {len(self._images):,} images was embedded")
        embeddings, numbers = self._distinct(_on_cpu(self.embeddings), numbers)
        missing = len(self._images) - len(numbers)
        if missing:
            raise MissingImagesError(f"{missing:,} of {len(self._images):,} images were not embedded")
        broken = int((~torch.isfinite(embeddings).all(dim=1)).sum())
        if broken:
            raise ValueError(f"{broken:,} embeddings are NaN or infinite: the network is broken")
        scores = cosine_scores(embeddings, self._rows[:, 0], self._rows[:, 1])
        return evaluate_pairs(scores, self.is_same, self.folds)

    def forward(self, embeddings: Tensor, numbers: Tensor) -> None:
        """As `update`: a single batch has no figures of its own."""
        self.update(embeddings, numbers)

    def plot(self, val: VerificationResult | None = None, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
        """Draws the ROC curve on a logarithmic FAR axis, with the operating points marked.

        Args:
            val: What `compute` returned; calls it where not given.
            ax: Where to draw; a new figure, independent of pyplot, where not given.

        Returns:
            The figure and its axes.
        """
        results = {"pairs": self.compute() if val is None else val}
        if ax is None:
            figure = roc_figure(results)
            return figure, figure.axes[0]
        draw_roc(ax, results, legend=True)
        return ax.figure, ax

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics does, also where a process has no image."""
        if not self.numbers:  # torchmetrics would send floats in their place
            self.embeddings.append(torch.empty(0, dtype=torch.float32, device=self.device))
            self.numbers.append(torch.empty(0, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def _distinct(self, embeddings: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The first embedding of each image that is in a pair, (images, D), and their numbers, rising."""
        numbers, order = numbers.sort(stable=True)
        kept = torch.isin(numbers, torch.from_numpy(self._images).to(numbers.device))
        kept[1:] &= numbers[1:] != numbers[:-1]
        return embeddings.view(len(numbers), -1)[order[kept]], numbers[kept]


def _on_cpu(state: list[Tensor] | Tensor) -> Tensor:
    """A state as one tensor: a list before the processes' parts are gathered, a tensor afterwards."""
    pieces = [state] if isinstance(state, Tensor) else state
    return torch.cat([piece.cpu() for piece in pieces])  # in this order: the device need not hold both
