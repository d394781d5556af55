"""The configuration of every start of a run, beside its logs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.cli import SaveConfigCallback

from facelit.cli.run_name import compare_checkpoints
from facelit.storage.files import replacing


class SaveRunConfig(SaveConfigCallback):
    """Keeps the configuration of every start of a run: `config.yaml`, then `config-resumed-1.yaml`, ..."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes the file into the run's folder, after making sure that all processes go on from the same checkpoint."""
        if stage == "fit":
            compare_checkpoints(trainer)
        folder = trainer.log_dir  # asked on every process: it is broadcast
        if folder is None or stage != "fit" or self.already_saved:
            return
        count = len(list(Path(folder).glob("config*.yaml")))
        path = Path(folder, "config.yaml" if count == 0 else f"config-resumed-{count}.yaml")
        if trainer.is_global_zero:
            for left in path.parent.glob(".config*.tmp"):  # by a start that was killed
                left.unlink(missing_ok=True)
        # Whole or not at all; Lightning writes under the name that it is given, in process 0.
        with replacing(path) if trainer.is_global_zero else nullcontext(path) as written:
            self.config_filename = written.name
            super().setup(trainer, pl_module, stage)
