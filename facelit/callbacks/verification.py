"""Measures face verification after each validation and draws the results."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor

from facelit.callbacks.folders import run_folder
from facelit.callbacks.monitors import check_monitors, check_trained_monitors, verification_sets
from facelit.checkpoints import store_calibration
from facelit.data.batches import EvalBatch
from facelit.data.sources import VerificationSource
from facelit.data.synthetic import is_drawn
from facelit.errors import FacelitError
from facelit.verification import MissingImagesError, PairVerification, VerificationResult
from facelit.verification.calibration import calibration_entry
from facelit.verification.figures import hardest_pairs_figure, roc_figure


class VerificationCallback(Callback):
    """LFW's protocol on every verification set of the data module, after each validation and test.

    For each set it logs `<set>/accuracy`, `<set>/accuracy_se`, `<set>/auc`, `<set>/eer`, `<set>/tar_at_far_1e-2`, ... and
    `<set>/threshold`, writes `<set>-roc.png` and `<set>-hardest.png` to the run's folder, and both pictures to TensorBoard.
    The accuracy of the first set is also logged as `val/accuracy`, by which the best checkpoint is chosen. Scores are cosine
    similarities of the embeddings; each distinct image is embedded once (`facelit.verification.PairVerification`).

    Checkpoints that `fit` writes afterwards carry the thresholds of the latest validation (best accuracy, FAR 1e-2, FAR 1e-3) and
    what they were measured on: see `facelit.verification.calibration`.

    Args:
        hardest_pairs: Number of false accepts and of false rejects in the picture; 0 draws none.
        flip_average: Whether the embedding of an image is averaged with that of its mirror image. Off by default, so that the
            figures are those of a single forward pass.
        save_scores: Whether to also write `<set>-scores.tsv`: fold, kind, score and both images of every pair.
        calibrate: Whether `validate` and `test` write the thresholds they find into the checkpoint file itself, for one that was
            trained without verification or with other sets. (`fit` always writes them.)

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
        self._metrics: dict[str, PairVerification] = {}
        self._has_logged = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a figure to watch that no validation will give: Lightning says so after the first one.

        Raises:
            FacelitError: A callback's `monitor` is misspelt, or there is nothing to look at where it looks.
        """
        if stage == "fit":
            check_monitors(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run, or what is left of one, begins."""
        self._has_logged = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """After the first batch that is logged: refuses a figure to watch that training does not give.

        Raises:
            FacelitError: A `monitor` is misspelt.
        """
        # Not every batch is logged: of accumulated ones the last, of a resumed run's the next that is due.
        if not self._has_logged and "train/loss" in trainer.callback_metrics:
            self._has_logged = True
            check_trained_monitors(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Creates the metric of each set.

        Raises:
            FacelitError: The trainer validates on DataLoaders that are not a FaceDataModule's.
        """
        if not verification_sets(trainer):
            raise FacelitError(
                "VerificationCallback measures the verification sets of FaceDataModule. With DataLoaders of your own, measure with"
                " facelit.verification.PairVerification."
            )
        self._metrics = {
            name: PairVerification(np.stack([source.first, source.second], axis=1), source.is_same, source.folds)
            for name, source in verification_sets(trainer).items()
        }

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Updates the set's metric with a batch of embeddings."""
        embeddings: Tensor = outputs
        if self.flip_average:
            with torch.inference_mode(), trainer.precision_plugin.forward_context():
                embeddings = (embeddings + pl_module(batch.images.flip(3)).float()) / 2
        list(self._metrics.values())[dataloader_idx].update(embeddings, batch.numbers)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates, logs and draws."""
        if trainer.sanity_checking or trainer.fast_dev_run or not self._metrics:
            return
        sources = verification_sets(trainer)
        for name, metric in self._metrics.items():
            self.results[name] = _compute(name, metric)
            missing = sources[name].num_missing_pairs
            extra = {"missing_pairs": float(missing)} if missing else {}
            self._log(trainer, pl_module, name, {**self.results[name].as_dict(), **extra})
            note = f"  ({missing} pairs left out)" if missing else ""
            figures = f"{self.results[name].summary()}{note}"
            if trainer.state.fn == "fit":
                rank_zero_info(f"{name} at step {trainer.global_step}: {figures}")
            elif trainer.is_global_zero:
                print(f"{name}: {figures}", flush=True)  # what `validate` is for
        first = next(iter(self._metrics))
        pl_module.log("val/accuracy", self.results[first].accuracy, logger=False, sync_dist=trainer.world_size > 1)
        self._metrics = {}
        self._calibrate(trainer, pl_module, sources)
        folder = run_folder(trainer)  # called on every process: it broadcasts
        if trainer.is_global_zero:
            self._draw(trainer, folder, sources)
            if self.save_scores and folder is not None:
                for name, source in sources.items():
                    _write_scores(folder / f"{name}-scores.tsv", source, self.results[name])

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _calibrate(
        self, trainer: Trainer, pl_module: LightningModule, sources: Mapping[str, VerificationSource]
    ) -> None:
        """Gives the thresholds to the module, which saves them in its checkpoints, or writes them to the loaded checkpoint."""
        calibration = {
            name: {
                **calibration_entry(self.results[name], len(source), trainer.global_step, self.flip_average),
                **({"drawn": True} if is_drawn(source) else {}),
            }
            for name, source in sources.items()
        }
        if trainer.state.fn == "fit":
            if hasattr(pl_module, "calibration"):
                pl_module.calibration = calibration  # type: ignore[assignment]  # a dict, as FaceRecognizer's is
        elif self.calibrate:
            if not trainer.ckpt_path:
                raise FacelitError("verification.calibrate writes into a checkpoint: name one with --ckpt_path.")
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
            result.scores,
            source.is_same,
            result.fold_thresholds[folds],
            count=self.hardest_pairs,
            title=f"{name}, {where}: the hardest pairs",
            names=source.names,
        )

    @staticmethod
    def _publish(trainer: Trainer, folder: Path | None, name: str, kind: str, figure: Figure) -> None:
        canvas = FigureCanvasAgg(figure)  # rendered once for both, as it is by far the slowest step here
        figure.set_dpi(110)
        with warnings.catch_warnings():  # one for each letter in people's names that the font lacks
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib's own
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]  # likewise
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{name}-{kind}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"{name}/{kind}", pixels, trainer.global_step, dataformats="HWC")


def _compute(name: str, metric: PairVerification) -> VerificationResult:
    try:
        return metric.compute()
    except MissingImagesError as error:
        raise FacelitError(
            f"verification set {name}: {error}. Is trainer.limit_val_batches or limit_test_batches set? Figures of part of a"
            " set would be meaningless; to train without verification: --data.verification null"
        ) from None
    except ValueError as error:
        raise FacelitError(f"verification set {name}: {error}.") from None


def _write_scores(path: Path, source: VerificationSource, result: VerificationResult) -> None:
    rows = ["fold\tsame\tscore\tfirst\tsecond"]
    for fold, same, score, first, second in zip(
        source.folds, source.is_same, result.scores, source.first, source.second, strict=True
    ):
        rows.append(f"{fold}\t{int(same)}\t{score:.8f}\t{source.names[first]}\t{source.names[second]}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
