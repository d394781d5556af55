"""Measures face verification after each validation, and draws what it found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor

from facelit.callbacks.folders import run_folder
from facelit.checkpoints import store_calibration
from facelit.data.batches import EvalBatch
from facelit.data.sources import VerificationSource
from facelit.errors import FacelitError
from facelit.verification import VerificationResult, evaluate_pairs
from facelit.verification.calibration import calibration_entry
from facelit.verification.embeddings import EmbeddingTable, cosine_scores
from facelit.verification.figures import hardest_pairs_figure, roc_figure


class VerificationCallback(Callback):
    """LFW's protocol on every verification set of the data module, after each validation and test.

    For each set it logs `<set>/accuracy`, `<set>/accuracy_se`, `<set>/auc`, `<set>/eer`, `<set>/tar_at_far_1e-2`, ... and
    `<set>/threshold`, writes `<set>-roc.png` and `<set>-hardest.png` into the run's folder and both pictures to TensorBoard.
    The first set's accuracy is logged as `val/accuracy` too, the name that checkpoints are chosen by. Scores are cosine
    similarities of the embeddings; each distinct image is embedded once.

    Checkpoints that `fit` writes afterwards carry the thresholds of the latest validation (best accuracy, FAR 1e-2, FAR 1e-3) and
    what they were measured on: see `facelit.verification.calibration`.

    Args:
        hardest_pairs: How many false accepts and how many false rejects the picture shows; 0 draws none.
        flip_average: Whether the embedding of an image is the mean of its own and its mirror image's. Off by default: what
            is measured is then what one forward pass gives.
        save_scores: Whether `<set>-scores.tsv` is written too: fold, kind, score and both images of every pair.
        calibrate: Whether `validate` and `test` write the thresholds that they find into the checkpoint file itself, for one
            that was trained without verification, or on other sets. (`fit` always writes them.)

    Raises:
        FacelitError: hardest_pairs is negative.
    """

    def __init__(
        self, hardest_pairs: int = 8, flip_average: bool = False, save_scores: bool = False, calibrate: bool = False
    ) -> None:
        if hardest_pairs < 0:
            raise FacelitError(f"verification.hardest_pairs must be at least 0 (0 draws none), not {hardest_pairs}.")
        self.hardest_pairs = hardest_pairs
        self.flip_average = flip_average
        self.save_scores = save_scores
        self.calibrate = calibrate
        self.results: dict[str, VerificationResult] = {}
        self.scores: dict[str, npt.NDArray[np.float64]] = {}
        self._tables: dict[str, EmbeddingTable] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts one empty table for each set."""
        self._tables = {name: EmbeddingTable(len(source)) for name, source in _sources(trainer).items()}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch of embeddings into the set's table."""
        embeddings: Tensor = outputs
        if self.flip_average:
            with torch.inference_mode(), trainer.precision_plugin.forward_context():
                embeddings = (embeddings + pl_module(batch.images.flip(3)).float()) / 2
        list(self._tables.values())[dataloader_idx].write(batch.numbers, embeddings)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates, logs and draws."""
        if trainer.sanity_checking or trainer.fast_dev_run or not self._tables:
            return
        sources = _sources(trainer)
        for name, table in self._tables.items():
            self.scores[name] = self._score(name, table, sources[name])
            self.results[name] = evaluate_pairs(self.scores[name], sources[name].is_same, sources[name].folds)
            missing = sources[name].num_missing_pairs
            extra = {"missing_pairs": float(missing)} if missing else {}
            self._log(trainer, pl_module, name, {**self.results[name].as_dict(), **extra})
            note = f"  ({missing} pairs left out)" if missing else ""
            when = f" at step {trainer.global_step}" if trainer.state.fn == "fit" else ""
            rank_zero_info(f"{name}{when}: {self.results[name].summary()}{note}")
        first = next(iter(self._tables))
        pl_module.log("val/accuracy", self.results[first].accuracy, logger=False, sync_dist=trainer.world_size > 1)
        self._tables = {}
        self._calibrate(trainer, pl_module, sources)
        folder = run_folder(trainer)  # asked on every process: it is broadcast
        if trainer.is_global_zero:
            self._draw(trainer, folder, sources)
            if self.save_scores and folder is not None:
                for name, source in sources.items():
                    _write_scores(folder / f"{name}-scores.tsv", source, self.scores[name])

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _score(self, name: str, table: EmbeddingTable, source: VerificationSource) -> npt.NDArray[np.float64]:
        try:
            embeddings = table.gather()
        except RuntimeError as error:
            raise FacelitError(
                f"verification set {name}: {error}. Is trainer.limit_val_batches or limit_test_batches set? Figures over part"
                " of a set would mean nothing; to train without verification: --data.verification null"
            ) from None
        broken = int((~torch.isfinite(embeddings).all(dim=1)).sum())
        if broken:
            raise FacelitError(
                f"verification set {name}: {broken} embeddings are NaN or infinite: the network is broken."
            )
        return cosine_scores(embeddings, source.first, source.second)

    def _calibrate(
        self, trainer: Trainer, pl_module: LightningModule, sources: Mapping[str, VerificationSource]
    ) -> None:
        """Hands the thresholds to the module, which writes them into its checkpoints, or to the file that was loaded."""
        calibration = {
            name: calibration_entry(self.results[name], len(source), trainer.global_step, self.flip_average)
            for name, source in sources.items()
        }
        if trainer.state.fn == "fit":
            if hasattr(pl_module, "calibration"):
                pl_module.calibration = calibration  # type: ignore[assignment]  # a dict, as FaceRecognizer's is
        elif self.calibrate:
            if not trainer.ckpt_path:
                raise FacelitError("verification.calibrate writes into a checkpoint, and none is named: ckpt_path.")
            if trainer.is_global_zero:
                store_calibration(trainer.ckpt_path, calibration)
                rank_zero_info(f"Wrote the thresholds of {', '.join(calibration)} into {trainer.ckpt_path}")

    def _log(self, trainer: Trainer, pl_module: LightningModule, name: str, figures: Mapping[str, float]) -> None:
        distributed = trainer.world_size > 1
        for key, value in figures.items():
            pl_module.log(f"{name}/{key}", value, prog_bar=key in ("accuracy", "auc"), sync_dist=distributed)

    def _draw(self, trainer: Trainer, folder: Path | None, sources: Mapping[str, VerificationSource]) -> None:
        where = f"step {trainer.global_step}" if trainer.state.fn == "fit" else "checkpoint"
        for name in sources:
            result = self.results[name]
            self._publish(trainer, folder, name, "roc", roc_figure({name: result}, f"{name}, {where}"))
            if self.hardest_pairs:
                self._publish(trainer, folder, name, "hardest", self._hardest(name, sources[name], result, where))

    def _hardest(self, name: str, source: VerificationSource, result: VerificationResult, where: str) -> Figure:
        folds = np.unique(source.folds, return_inverse=True)[1]
        return hardest_pairs_figure(
            source.image,
            source.first,
            source.second,
            self.scores[name],
            source.is_same,
            result.fold_thresholds[folds],
            count=self.hardest_pairs,
            title=f"{name}, {where}: the hardest pairs",
            names=source.names,
        )

    @staticmethod
    def _publish(trainer: Trainer, folder: Path | None, name: str, kind: str, figure: Figure) -> None:
        canvas = FigureCanvasAgg(figure)  # rendered once for both: it takes longer than anything else here
        figure.set_dpi(110)
        canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib's own
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]  # likewise
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{name}-{kind}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"{name}/{kind}", pixels, trainer.global_step, dataformats="HWC")


def _write_scores(path: Path, source: VerificationSource, scores: npt.NDArray[np.float64]) -> None:
    rows = ["fold\tsame\tscore\tfirst\tsecond"]
    for fold, same, score, first, second in zip(
        source.folds, source.is_same, scores, source.first, source.second, strict=True
    ):
        rows.append(f"{fold}\t{int(same)}\t{score:.8f}\t{source.names[first]}\t{source.names[second]}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _sources(trainer: Trainer) -> Mapping[str, VerificationSource]:
    """The data module's verification sets, in the order of its loaders."""
    sources: Mapping[str, VerificationSource] = getattr(trainer.datamodule, "verification", {})
    return sources
