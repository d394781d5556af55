"""StopOnNonFiniteLoss: the run ends, the message says where, and good checkpoints stay."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor

from facelit import FacelitError, FaceRecognizer
from facelit.backbones import VGG16
from facelit.callbacks import LastCheckpoint
from facelit.callbacks.finite_loss import StopOnNonFiniteLoss
from facelit.data import FaceDataModule, IdentityFolder
from facelit.heads import SoftmaxHead
from facelit.heads.base import Head, HeadOutput
from tiny_run import write_crops


class BreaksAt(Head):
    """A softmax head whose loss becomes `value` at its call number `call`, counted from 0."""

    def __init__(self, call: int, value: float) -> None:
        super().__init__()
        self.softmax, self.call, self.value, self.calls = SoftmaxHead(8, 16), call, value, 0

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        output = self.softmax(embeddings, labels)
        self.calls += 1
        return output if self.calls <= self.call else HeadOutput(output.loss * self.value, output.metrics)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_ends_a_run_and_names_the_last_good_checkpoint(tmp_path: Path, value: float) -> None:
    """Made in Python without naming the callback; the broken weights never reach a file."""
    model = FaceRecognizer(VGG16(16, width=0.01), BreaksAt(4, value), lambda params: torch.optim.SGD(params, lr=0.0125))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        default_root_dir=tmp_path,
        callbacks=[LastCheckpoint(every_n_train_steps=3)],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = FaceDataModule(train=IdentityFolder(write_crops(tmp_path / "crops")), batch_size=8, num_workers=0)
    with pytest.raises(FacelitError) as stopped:
        trainer.fit(model, data)
    (path,) = tmp_path.glob("**/*.ckpt")
    message = str(stopped.value)
    assert "NaN or infinite since step 5 (learning rate 0.0125)" in message
    assert message.endswith(f"Last good checkpoint: {path}")
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 3
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def trainer_at(step: int) -> Any:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.25}])
    return SimpleNamespace(
        global_step=step, log_every_n_steps=1, optimizers=[optimizer], checkpoint_callback=None, ckpt_path=None
    )


@pytest.mark.parametrize("later", ["on_validation_start", "on_train_end", "on_save_checkpoint"])
def test_looked_at_later_the_first_bad_step_is_named(monkeypatch: pytest.MonkeyPatch, later: str) -> None:
    """As on a GPU between logging steps: losses are noted and nothing waits for them."""
    callback = StopOnNonFiniteLoss()
    with monkeypatch.context() as patched:
        patched.setattr(callback, "_stop_if_bad", lambda trainer: None)
        for step, loss in enumerate([1.0, 2.0, float("nan"), 3.0, float("inf")], start=1):
            callback.on_train_batch_end(trainer_at(step), None, {"loss": torch.tensor(loss)}, None, step)  # type: ignore[arg-type]
    extra = [{}] if later == "on_save_checkpoint" else []
    with pytest.raises(FacelitError, match=r"since step 3 \(learning rate 0\.25\).*No checkpoint was written before"):
        getattr(callback, later)(trainer_at(9), None, *extra)


def test_finite_losses_pass() -> None:
    callback = StopOnNonFiniteLoss()
    for step in range(1, 5):
        callback.on_train_batch_end(trainer_at(step), None, {"loss": torch.tensor(3e38)}, None, step)  # type: ignore[arg-type]
    callback.on_train_batch_end(trainer_at(5), None, None, None, 5)  # type: ignore[arg-type]  # a step that was left out
    callback.on_train_end(trainer_at(5), None)  # type: ignore[arg-type]
