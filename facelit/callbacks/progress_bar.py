"""A progress bar that steps do not wait for, and that keeps to one line of the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich import get_console
from rich.progress import BarColumn, ProgressColumn

SECONDS_BETWEEN = 0.2
# Terminals narrower than this get a short bar and no speed: the figures need the room.
WIDE, SHORT_BAR, LONG_BAR = 160, 10, 40
TIMES, SPEED = len("0:00:00 • -:--:--"), len("1000.00it/s")


class QuickProgressBar(RichProgressBar):
    """Lightning's Rich bar, updated five times a second instead of at every batch, on one line.

    An update takes over a millisecond of the process that starts the steps: much where a GPU takes fifteen for one. Figures
    that do not fit beside the bar are left out; each validation prints its own in full.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shown_at = -SECONDS_BETWEEN

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows the batch, if it is time to, or the last one."""
        now = monotonic()
        if now - self._shown_at >= SECONDS_BETWEEN or batch_idx + 1 >= self.total_train_batches:
            self._shown_at = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Lightning's columns; on a narrow terminal a short bar, and no speed, which follows from the times."""
        columns: list[ProgressColumn] = super().configure_columns(trainer)
        if get_console().width >= WIDE:
            return columns
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = SHORT_BAR
        return [column for column in columns if not isinstance(column, ProcessingSpeedColumn)]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The figures that fit on the bar's line, without the run's number, which is no figure."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        width = get_console().width
        epoch = max(len(self.validation_description), len(f"Epoch {trainer.max_epochs}/{trainer.max_epochs}"))
        batches = len(f"{self.total_train_batches}/{self.total_train_batches}")
        parts = [epoch, batches, TIMES, *([LONG_BAR, SPEED] if width >= WIDE else [SHORT_BAR])]
        return fitting(metrics, width - sum(part + 1 for part in parts), self.theme.metrics_format)


def fitting(metrics: Mapping[str, Any], room: int, number_format: str) -> dict[str, Any]:
    """The first metrics whose `name: value` fit into so many characters, separated by spaces.

    Names lose their group (`lfw/accuracy` becomes `accuracy`) where all would not fit otherwise and the name stays unique.
    """

    def length(name: str) -> int:
        value = metrics[name]
        return len(f"{name}: {value if isinstance(value, str) else format(value, number_format)}")

    if sum(length(name) + 1 for name in metrics) - 1 > room:
        endings = [name.rpartition("/")[2] for name in metrics]
        metrics = {
            ending if endings.count(ending) == 1 else name: value
            for ending, (name, value) in zip(endings, metrics.items(), strict=True)
        }
    shown: dict[str, Any] = {}
    for name, value in metrics.items():
        room -= length(name)
        if room < 0:
            break
        room -= 1
        shown[name] = value
    return shown
