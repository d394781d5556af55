"""One epoch shows each image exactly once: over processes, workers, resumed runs, and sizes that do not divide."""

import csv
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.utilities import move_data_to_device

from facelit.cli import main
from facelit.data import FaceDataModule, IdentitySource, ShuffleSampler
from facelit.data.batches import TrainBatch
from facelit.data.resuming import order_of
from facelit.data.samplers import EpochSampler
from facelit.errors import FacelitError
from facelit.storage.images import Crop
from tiny_run import make_run
from two_processes import facelit_on_two_processes

WORLD_SIZE, NUM_WORKERS = 2, 3
SIZES = [(23, 4), (24, 4), (25, 4), (7, 1)]  # images and batch_size; the second divides
MANY_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")


class OneEach(IdentitySource):
    """Images of one colour, each an identity of its own: a label tells which image it is of."""

    def __init__(self, num_images: int) -> None:
        self.numbers = np.arange(num_images, dtype=np.int32)

    @property
    def labels(self) -> np.ndarray:
        return self.numbers

    @property
    def identities(self) -> Sequence[str]:
        return [self.name(number) for number in self.numbers]

    def image(self, index: int) -> Crop:
        return np.full((112, 112, 3), index, np.uint8)

    def name(self, index: int) -> str:
        return f"image {index}"


def loader_of(
    rank: int, num_images: int, batch_size: int, seed: int = 0, num_workers: int = 0, world_size: int = WORLD_SIZE
) -> Iterable[TrainBatch]:
    data = FaceDataModule(train=OneEach(num_images), batch_size=batch_size, num_workers=num_workers, seed=seed)
    epoch = SimpleNamespace(current=SimpleNamespace(ready=0, started=0, processed=0), increment_processed=lambda: None)
    batches = SimpleNamespace(current=SimpleNamespace(ready=0))
    epoch_loop = SimpleNamespace(_batches_that_stepped=0, batch_progress=batches)
    fit_loop = SimpleNamespace(restarting=False, epoch_progress=epoch, epoch_loop=epoch_loop)
    data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, overfit_batches=0, fit_loop=fit_loop)
    return data.train_dataloader()


def images_of(loader: Iterable[TrainBatch], epoch: int = 0) -> list[list[int]]:
    """Image numbers of each batch; the pixels are those of the labels."""
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    for batch in batches:
        assert batch.labels.dtype == torch.int64
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)
    return [batch.labels.tolist() for batch in batches]


@MANY_WORKERS
@pytest.mark.parametrize(("num_images", "batch_size"), SIZES)
def test_two_processes_and_three_workers(num_images: int, batch_size: int) -> None:
    parts = [images_of(loader_of(rank, num_images, batch_size, num_workers=NUM_WORKERS)) for rank in range(WORLD_SIZE)]
    assert sorted(chain.from_iterable(chain.from_iterable(parts))) == list(range(num_images))
    assert len(parts[0]) == len(parts[1])  # a process with fewer would hang the other
    assert parts == [images_of(loader_of(rank, num_images, batch_size)) for rank in range(WORLD_SIZE)]


@MANY_WORKERS
def test_resumed_with_workers() -> None:
    """In the middle of the second epoch."""
    num_images, batch_size = SIZES[0]
    for rank in range(WORLD_SIZE):
        whole = images_of(loader_of(rank, num_images, batch_size), epoch=1)
        loader = loader_of(rank, num_images, batch_size, num_workers=NUM_WORKERS)
        loader.load_state_dict({"epoch": 1, "batches_done": 1})
        assert images_of(loader, epoch=1) == whole[1:]
        assert images_of(loader, epoch=2) == images_of(loader_of(rank, num_images, batch_size), epoch=2)


def test_resumed_on_another_number_of_processes() -> None:
    """2 x 4 and 1 x 8 images are the same batches; 2 x 8 are others, which is fine at the end of an epoch only."""
    single = loader_of(0, 23, 8, world_size=1)
    order = order_of(single.sampler, single.dataset.reader.source)
    middle = {"epoch": 1, "batches_done": 1, "batches": len(single), "order": order}
    parts = []
    for rank in range(WORLD_SIZE):
        loader = loader_of(rank, 23, 4)
        loader.load_state_dict(middle)
        parts.append(images_of(loader, epoch=1))
    rest = [first + second for first, second in zip(*parts, strict=True)]
    assert rest == images_of(single, epoch=1)[1:]

    other = loader_of(0, 23, 8)
    with pytest.raises(FacelitError, match=r"after 1 of the 3 batches.*global batch size 16 instead of 8"):
        other.load_state_dict(middle)
    for end in ({**middle, "batches_done": 3}, {**middle, "batches_done": 0, "epoch": 2}):
        other = loader_of(0, 23, 8)
        other.load_state_dict(end)
        assert images_of(other, epoch=2) == images_of(loader_of(0, 23, 8), epoch=2)


def test_seeds() -> None:
    one = images_of(loader_of(0, 23, 4, seed=1))
    assert one == images_of(loader_of(0, 23, 4, seed=1))
    assert one != images_of(loader_of(0, 23, 4, seed=2))


def test_the_size_of_the_global_batch_stays_a_number() -> None:
    """Neither the loader nor the way to the device makes a tensor of it, which would have to be waited for."""
    batches = [list(loader_of(rank, 23, 4)) for rank in range(WORLD_SIZE)]
    for first, second in zip(*batches, strict=True):
        assert first.global_size == second.global_size == len(first.labels) + len(second.labels)
        assert type(move_data_to_device(first, torch.device("cpu")).global_size) is int


@settings(max_examples=150, deadline=None)
@given(
    num_images=st.integers(1, 120),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_exact_epochs(num_images: int, batch_size: int, world_size: int, seed: int, data: st.DataObject) -> None:
    labels, plan = np.arange(num_images), ShuffleSampler(batch_size)
    if num_images < batch_size * world_size:
        with pytest.raises(FacelitError, match="batch_size"):
            EpochSampler(plan, labels, world_size, 0, seed)
        return
    samplers = [EpochSampler(plan, labels, world_size, rank, seed) for rank in range(world_size)]
    epochs = [[request.indices.tolist() for request in sampler] for sampler in samplers]
    assert sorted(chain.from_iterable(chain.from_iterable(epochs))) == list(range(num_images))
    assert [len(epoch) for epoch in epochs] == [len(sampler) for sampler in samplers] == [len(epochs[0])] * world_size

    # The processes have the same number of images in a batch, or the first ones have one more.
    sizes = [[len(batch) for batch in batches] for batches in zip(*epochs, strict=True)]
    assert all(own == sorted(own, reverse=True) and own[0] - own[-1] <= 1 for own in sizes)
    # Batches are full but for the last two, which are as good as equal and not much smaller than half.
    totals = [sum(own) for own in sizes]
    full = batch_size * world_size
    assert all(total == full for total in totals[:-2])
    assert min(totals) >= full // 2
    assert min(chain.from_iterable(sizes)) >= max(1, batch_size // 2)
    assert max(totals) <= (full if batch_size > 1 else 2 * full - 1)
    assert batch_size == 1 or totals[-1] == full or totals[-2] - totals[-1] <= 1

    done = data.draw(st.integers(0, len(epochs[0]) - 1))
    for sampler, epoch in zip(samplers, epochs, strict=True):
        sampler.resume(epoch=0, batches_done=done)
        assert [request.indices.tolist() for request in sampler] == epoch[done:]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """47 images in global batches of 10, 10, 10, 9, 8, two to a step, through the real command line: the same weights."""
    options = {"data__verification": None, "trainer__max_epochs": 1, "trainer__accumulate_grad_batches": 2}
    runs = []
    for name, batch_size, fit in (("one", 10, on_one_process), ("two", 5, facelit_on_two_processes)):
        folder = tmp_path / name
        folder.mkdir()
        config = make_run(folder, model__backbone__init_args__plain=True, data__batch_size=batch_size, **options)
        (folder / "crops" / "person_00" / "person_00_0001.png").unlink()
        fit("fit", "--config", str(config))
        (metrics,), (checkpoint,) = folder.glob("**/metrics.csv"), folder.glob("**/last.ckpt")
        with metrics.open() as file:
            losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
        runs.append((losses, torch.load(checkpoint, weights_only=True)))
    (losses, single), (double_losses, double) = runs
    assert double["global_step"] == single["global_step"] == 3
    assert double_losses == pytest.approx(losses, abs=2e-5)
    for name, value in single["state_dict"].items():
        torch.testing.assert_close(double["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def on_one_process(*arguments: str) -> None:
    main(arguments)


def test_processes_that_see_different_folders_are_stopped() -> None:
    """Row numbers would mean other images on one of them."""
    data = FaceDataModule(train=OneEach(20), batch_size=4)
    strategy = SimpleNamespace(broadcast=lambda own: own)
    data.trainer = SimpleNamespace(world_size=2, global_rank=1, strategy=strategy)
    data._compare_over_processes(OneEach(20))
    strategy.broadcast = lambda own: "what process 0 has hashed"
    with pytest.raises(FacelitError, match="different training sets"):
        data._compare_over_processes(OneEach(20))
