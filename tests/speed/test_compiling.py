"""torch.compile as an option: the same numbers and checkpoints, one program for each of training and evaluation."""

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from facelit import FacelitError, FaceRecognizer
from facelit.data import FaceDataModule
from facelit.data.batches import TrainBatch
from facelit.heads import CenterLossHead
from facelit.speed.compiling import CompiledBackbone, make_compiled
from facelit.speed.recomputing import recompute_activations

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile needs a C++ compiler, and there is none"
)


def network() -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 5, stride=4)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(2916, 8))


class Batches(FaceDataModule):
    """Three batches, the last of them smaller."""

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        generator = torch.Generator().manual_seed(0)
        images = [torch.randint(0, 256, (n, 3, 112, 112), dtype=torch.uint8, generator=generator) for n in (4, 4, 3)]
        batches = [TrainBatch(batch, torch.arange(len(batch)), torch.rand(len(batch), 20)) for batch in images]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a dataset

    def setup(self, stage: str) -> None:
        """There is no training set to look at."""


def fit(folder: Path, compiled: bool) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of a run with two epochs, and its weights."""
    losses: list[float] = []

    class Recognizer(FaceRecognizer):
        def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            losses.append(float(loss))
            return loss

    torch.manual_seed(0)
    head = CenterLossHead(4, 8)
    model = Recognizer(network(), head, lambda params: torch.optim.SGD(params, lr=0.01), compile=compiled)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_val_batches=0,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, Batches(num_workers=0))
    (path,) = folder.glob("checkpoints/*.ckpt")
    return losses, torch.load(path, weights_only=True)["state_dict"]


def test_losses_and_checkpoints_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured and differentiated as by torch.compile; run without a compiler, which takes long to start."""
    torch._dynamo.reset()
    real = torch.compile
    backend = {"backend": "aot_eager"}
    monkeypatch.setattr(torch, "compile", lambda function, mode, **options: real(function, **options, **backend))
    losses, state = fit(tmp_path / "plain", compiled=False)
    compiled_losses, compiled_state = fit(tmp_path / "compiled", compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "the batch of 3 is not compiled for"
    assert len(losses) == 6
    assert compiled_losses == pytest.approx(losses, abs=1e-5)
    assert list(compiled_state) == list(state)
    for name, value in state.items():
        torch.testing.assert_close(compiled_state[name], value, rtol=1e-4, atol=1e-5, msg=name)


@needs_compiler
@pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="such a torch is refused")
def test_compiled_in_earnest() -> None:
    """With recomputed activations in a part of it: the compiled program still counts each batch once."""
    torch._dynamo.reset()
    layers = [nn.Conv2d(3, 2, 7, stride=7), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)]
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Sequential(*layers[:3]), *layers[3:])
    plain = copy.deepcopy(backbone)
    recompute_activations(backbone)
    compiled = CompiledBackbone()
    images = torch.randn(2, 3, 112, 112)
    for network_, embeddings in ((plain, plain(images)), (backbone, compiled(backbone, images))):
        (embeddings.square().mean()).backward()
        assert all(value.grad is not None for value in network_.parameters())
    for (name, value), other in zip(plain.named_parameters(), backbone.parameters(), strict=True):
        torch.testing.assert_close(other.grad, value.grad, rtol=1e-5, atol=1e-6, msg=name)
    for (name, buffer), other in zip(plain.named_buffers(), backbone.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, msg=name)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Which batches go through torch.compile: whether in training, and of how many."""
    calls: list[tuple[bool, int]] = []

    def compile_(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        assert options["dynamic"] is False

        def run(backbone: nn.Module, images: Tensor) -> Tensor:
            calls.append((backbone.training, len(images)))
            return function(backbone, images)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def test_smaller_batches_are_not_compiled_for(sizes: list[tuple[bool, int]]) -> None:
    """A resumed run may begin with the small last batch of its epoch: the whole ones after it count."""
    backbone, compiled = network(), CompiledBackbone()
    for number in (3, 8, 8, 5, 8):
        images = torch.randn(number, 3, 112, 112)
        assert torch.equal(compiled(backbone, images), backbone(images))
    backbone.eval()
    for number in (6, 6, 2):
        compiled(backbone, torch.randn(number, 3, 112, 112))
    assert sizes == [(True, 3), (True, 8), (True, 8), (True, 8), (False, 6), (False, 6)]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda compiled: pickle.loads(pickle.dumps(compiled))])
def test_copies_are_made_anew(sizes: list[tuple[bool, int]], again: Callable[[Any], Any]) -> None:
    compiled = CompiledBackbone("max-autotune")
    compiled(network(), torch.randn(4, 3, 112, 112))
    copied = again(compiled)
    assert copied.mode == "max-autotune"
    copied(network(), torch.randn(2, 3, 112, 112))
    assert sizes == [(True, 4), (True, 2)]


def test_what_evaluation_keeps_is_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA graphs do, which give each result in the same memory."""
    memory = torch.zeros(2, 8)
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda *args: memory.copy_(function(*args)))
    compiled, backbone = CompiledBackbone("reduce-overhead"), network().eval()
    with torch.inference_mode():
        first, second = (torch.randn(2, 3, 112, 112) for _ in range(2))
        kept = [compiled(backbone, images) for images in (first, second)]
        assert torch.equal(kept[0], backbone(first))
        assert torch.equal(kept[1], backbone(second))


def test_the_option() -> None:
    compiled = make_compiled(True)
    assert compiled is not None
    assert compiled.mode == "default"
    assert make_compiled(False) is None
    with pytest.raises(FacelitError, match=r"model\.compile must be true, false or one of default, .*, not fast"):
        make_compiled("fast")


def test_cuda_graphs_and_accumulated_batches_are_refused() -> None:
    CompiledBackbone("default").check_accumulation(2)
    CompiledBackbone("reduce-overhead").check_accumulation(1)
    with pytest.raises(FacelitError, match=r"reduce-overhead cannot be combined with trainer\.accumulate_grad_batches"):
        CompiledBackbone("reduce-overhead").check_accumulation(2)


@needs_compiler
def test_without_a_compiler_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(FacelitError, match=r"model\.compile: torch\.compile failed.*needs a C\+\+ compiler"):
        CompiledBackbone()(network(), torch.randn(5, 3, 112, 112))
