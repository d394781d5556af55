"""FaceRecognizer with the (images, labels) of anybody's DataLoader, under a plain Lightning Trainer."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from facelit import FacelitError, FaceRecognizer
from facelit.callbacks import VerificationCallback
from facelit.data.batches import TrainBatch
from facelit.distributed import rank
from facelit.heads import CenterLossHead, SoftmaxHead
from facelit.optim import WarmupCosine
from two_processes import run_on_two_processes

IDENTITIES, DIM, SIZE = 4, 6, 8
IMAGES = torch.rand(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(16) % IDENTITIES
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def recognizer(head: type[Any] = SoftmaxHead, **options: Any) -> FaceRecognizer:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, DIM))
    return FaceRecognizer(backbone, head(IDENTITIES, DIM), lambda params: torch.optim.SGD(params, lr=0.1), **options)


def loader(batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=batch_size)


def by_hand(steps: int, batch_size: int, order: Sequence[int] = range(16)) -> dict[str, Tensor]:
    """What plain torch makes of the same batches under softmax cross-entropy."""
    model = recognizer()
    layer, weight = model.backbone[1], model.head.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        rows = list(order)[step * batch_size : (step + 1) * batch_size]
        logits = layer(IMAGES[rows].flatten(1)) @ weight.T
        if getattr(model.head, "bias", None) is not None:
            logits = logits + model.head.bias
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, LABELS[rows]).backward()
        optimizer.step()
    return model.state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_one_process_without_a_word_of_warning_from_facelit(tmp_path: Path) -> None:
    model = recognizer()
    trainer = Trainer(max_epochs=1, log_every_n_steps=1, default_root_dir=tmp_path, **QUIET)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, loader(8), loader(5))
    assert_same(model.state_dict(), by_hand(steps=2, batch_size=8))
    assert {"train/loss", "loss", "lr"} <= trainer.callback_metrics.keys()
    assert not [str(one.message) for one in caught if "facelit" in f"{one.message}{one.filename}"]


class Pool(LightningEnvironment):
    """The two processes of the tests, which form a group already."""

    creates_processes_externally = True

    def world_size(self) -> int:
        return 2

    def global_rank(self) -> int:
        return rank()

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return rank()

    def set_world_size(self, size: int) -> None:
        """Stays."""

    def set_global_rank(self, rank: int) -> None:
        """Stays."""


def fit_on_two() -> tuple[list[int], dict[str, Tensor], list[Tensor]]:
    model = recognizer()
    trainer = Trainer(max_epochs=1, devices=1, num_nodes=2, strategy=DDPStrategy(cluster_environment=Pool()), **QUIET)
    trainer.fit(model, loader(4), loader(4))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return list(trainer.train_dataloader.sampler), state, trainer.predict(model, loader(4))


def test_two_processes() -> None:
    """Lightning shares out the images: two batches of four are one of eight by hand."""
    results = run_on_two_processes(fit_on_two)
    (first, *_), (second, *_) = results
    assert sorted(first + second) == list(range(16))
    expected = by_hand(steps=2, batch_size=8, order=first[:4] + second[:4] + first[4:] + second[4:])
    for number, (_, state, embeddings) in enumerate(results):
        assert_same(state, expected)
        trained = recognizer()
        trained.load_state_dict(expected)
        torch.testing.assert_close(torch.cat(embeddings), trained(IMAGES[number::2]), rtol=1e-4, atol=1e-5)


def test_centers_and_a_schedule_need_no_data_module_either(tmp_path: Path) -> None:
    model = recognizer(CenterLossHead, lr_scheduler=lambda optimizer: WarmupCosine(optimizer, 1), lr_interval="step")
    before = model.head.center_loss.centers.clone()
    Trainer(max_epochs=2, default_root_dir=tmp_path, **QUIET).fit(model, loader(8))
    assert model.optimization.schedule_length._schedule.total_steps == 4
    assert not torch.equal(model.head.center_loss.centers, before)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_fit_returns_when_max_time_is_over(tmp_path: Path) -> None:
    """A script has something to do afterwards."""
    trainer = Trainer(max_epochs=1, max_time={"seconds": 0}, default_root_dir=tmp_path, **QUIET)
    trainer.fit(recognizer(), loader(4))
    assert trainer.global_step < 4


def test_verification_needs_the_data_module(tmp_path: Path) -> None:
    trainer = Trainer(callbacks=[VerificationCallback()], default_root_dir=tmp_path, **QUIET)
    with pytest.raises(FacelitError, match="With DataLoaders of your own, measure with"):
        trainer.validate(recognizer(), loader(4))


def test_a_schedule_of_an_endless_run_is_refused(tmp_path: Path) -> None:
    model = recognizer(lr_scheduler=WarmupCosine, lr_interval="step")
    with pytest.raises(FacelitError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        Trainer(max_epochs=-1, default_root_dir=tmp_path, **QUIET).fit(model, loader(8))


@pytest.mark.parametrize(
    "batch", [(IMAGES, LABELS), [IMAGES, LABELS.to(torch.int16)], (IMAGES, LABELS.to(torch.uint8))]
)
def test_tuples_lists_and_integers_of_any_width(batch: Sequence[Tensor], tmp_path: Path) -> None:
    model = recognizer()
    Trainer(max_steps=1, default_root_dir=tmp_path, **QUIET).fit(model, DataLoader([batch], batch_size=None))
    assert_same(model.state_dict(), by_hand(steps=1, batch_size=16))


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES,), [IMAGES, LABELS], (IMAGES, LABELS, ["a name"] * 16)])
def test_images_to_embed(batch: object) -> None:
    model = recognizer()
    for step in (model.validation_step, model.test_step, model.predict_step):
        embeddings = step(batch, 0)
        assert torch.equal(embeddings, model(IMAGES))
        assert embeddings.dtype == torch.float32


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_example_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, but for the size of the network and of the set."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "python-api.md").read_text()
    section = page.partition("## FaceRecognizer with your own DataLoader")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    code = code.replace("MobileFaceNet(embedding_dim=128)", "MobileFaceNet(embedding_dim=128, width=0.1)")
    code = code.replace("(64", "(16").replace("Trainer(", "Trainer(accelerator='cpu', ")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/python-api.md", "exec"), names)
    assert names["embeddings"].shape == (16, 128)
    assert names["trainer"].current_epoch == 2


BYTES = ((IMAGES + 1) * 127.5).to(torch.uint8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((BYTES, LABELS), r"the images are uint8; .* floats in \[-1, 1\]\. From bytes: images\.float\(\) / 127\.5 - 1"),
        (TrainBatch(BYTES, LABELS, LABELS), "the images are uint8; .* trainer.fit.model, datamodule"),
        ((IMAGES, LABELS.float()), "the labels are float32; they must be integers"),
        ((IMAGES, LABELS == 1), "the labels are bool; they must be integers"),
        ((IMAGES, ["a", "b"]), "the labels must be a tensor of integers, not a list of 2"),
        ((IMAGES, LABELS[:3]), r"labels of shape \(3,\) for images of shape \(16, 3, 8, 8\): it needs one label"),
        ((IMAGES, LABELS, LABELS), r"batches of \(images, labels\).*yields a tuple of 3\. Let the dataset"),
        ({"images": IMAGES, "labels": LABELS}, "yields a dict of 2"),
        (IMAGES, "yields a Tensor"),
        (("a.jpg", LABELS), r"the images must be a tensor of floats in \[-1, 1\], not a str"),
    ],
)
def test_batches_that_it_cannot_train_on_are_explained(batch: object, message: str) -> None:
    with pytest.raises(FacelitError, match=message):
        recognizer().training_step(batch, 0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"images": IMAGES}, "embeds images, .* yields a dict of 1"),
        ([], "yields a list of 0"),
        ((BYTES, LABELS), "the images are uint8"),
    ],
)
def test_batches_that_it_cannot_embed_are_explained(batch: object, message: str) -> None:
    with pytest.raises(FacelitError, match=message):
        recognizer().validation_step(batch, 0)


def test_images_in_other_units_are_warned_of_once_a_loader() -> None:
    model = recognizer()
    with pytest.warns(UserWarning, match=r"values up to 25\d .* expects \[-1, 1\]"):
        model.validation_step((BYTES.float(), LABELS), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.validation_step((BYTES.float(), LABELS), 1)
        model.validation_step((IMAGES, LABELS), 0)
