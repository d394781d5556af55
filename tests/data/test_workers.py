"""Workers without room in shared memory, workers that die, and workers that are stuck: a run ends in one line."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from facelit.cli import main
from facelit.data import FaceDataModule, SyntheticFaces, VerificationSource
from facelit.data import workers as module
from facelit.data.workers import Load, check_shared_memory, explain_lost_worker
from facelit.errors import FacelitError
from facelit.storage.images import Crop
from facelit.storage.system import spare_open_files
from tiny_run import make_run

MB = 2**20


class Black(VerificationSource):
    """Images of nothing; number 1 does what it is told."""

    def __init__(self, count: int, act: str = "") -> None:
        even = np.arange(0, count, 2)
        super().__init__([""] * count, even, even + 1, even % 4 == 0, even % 3)
        self.act = act

    def image(self, number: int) -> Crop:
        if self.act == "die" and number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.act == "stick" and number == 1:
            time.sleep(60)
        return np.zeros((112, 112, 3), np.uint8)


def test_dockers_64_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four workers that are two batches ahead, and one batch in use: 9 x 256 x 37,632 bytes are 83 MB, which froze."""
    monkeypatch.setattr(module, "free_shared_memory", lambda: 64 * MB)
    data = FaceDataModule(verification={"x": Black(7000)}, eval_batch_size=256, num_workers=4)
    with pytest.raises(
        FacelitError, match=r"num_workers 4 with data\.eval_batch_size 256 keep up to 83 MB .* 64 MB free.*to 2,"
    ):
        data.setup("validate")
    FaceDataModule(verification={"x": Black(7000)}, eval_batch_size=256, num_workers=2).setup("validate")
    FaceDataModule(verification={"x": Black(1000)}, eval_batch_size=256, num_workers=4).setup("validate")  # 4 batches
    FaceDataModule(verification={"x": Black(7000)}, eval_batch_size=256, num_workers=0).setup("validate")


def test_training_and_verification_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_shared_memory", lambda: 10 * MB)
    faces = SyntheticFaces(num_identities=10, images_per_identity=40)
    sets: dict[str, VerificationSource] = {"x": Black(400)}
    FaceDataModule(faces, sets, batch_size=40, eval_batch_size=40, num_workers=2)._check_workers("validate")
    both = FaceDataModule(faces, sets, batch_size=40, eval_batch_size=40, num_workers=2)
    with pytest.raises(FacelitError, match=r"data\.batch_size 40 and data\.eval_batch_size 40 keep up to 14 MB.*to 1,"):
        both._check_workers("fit")


def test_every_process_of_a_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_shared_memory", lambda: 64 * MB)
    check_shared_memory([Load("data.batch_size", 128, 99)], 4, 1)
    with pytest.raises(FacelitError, match="keep up to 83 MB"):
        check_shared_memory([Load("data.batch_size", 128, 99)], 4, 2)
    with pytest.raises(FacelitError, match=r"to 0 \(reading in the main process\)"):
        check_shared_memory([Load("data.batch_size", 1024, 99)], 4, 2)


def test_systems_that_do_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARED_MEMORY", "/no/such/folder")
    check_shared_memory([Load("data.batch_size", 10**6, 99)], 4, 1)


@pytest.mark.parametrize(
    ("act", "told"), [("die", "died .*shm-size"), ("stick", "not delivered a batch.*worker_timeout")]
)
def test_a_lost_worker_ends_the_run(act: str, told: str) -> None:
    data = FaceDataModule(verification={"x": Black(8, act)}, eval_batch_size=2, num_workers=1, worker_timeout=3)
    (loader,) = data.val_dataloader()
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    explained = explain_lost_worker(caught.value)
    assert explained is not None
    with pytest.raises(FacelitError, match=told):
        raise explained


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Too many open files. Communication with the workers is no longer possible. Please increase"),
        RuntimeError("received 0 items of ancdata"),
        RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
)
def test_too_few_open_files(error: Exception) -> None:
    """torch's three ways to say it, and Python's, which ended in tracebacks."""
    assert "ulimit -n 4096" in str(explain_lost_worker(error))


def test_open_files_are_reckoned_before_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `ulimit -n 22` a worker lost a batch that it could not hand over, and `fit` waited for it: with 2 workers, 5 batches of 3 tensors."""
    data = FaceDataModule(verification={"x": Black(80)}, eval_batch_size=10, num_workers=2)
    monkeypatch.setattr(module, "spare_open_files", lambda wanted: 30)
    with pytest.raises(
        FacelitError, match=r"only 30 more files, and data\.num_workers 2 needs up to 31\. .*hard limit"
    ):
        data.setup("validate")
    FaceDataModule(verification={"x": Black(40)}, eval_batch_size=10, num_workers=2).setup("validate")  # 4 batches
    FaceDataModule(verification={"x": Black(80)}, eval_batch_size=10, num_workers=0).setup("validate")
    for spare in (31, None):
        monkeypatch.setattr(module, "spare_open_files", lambda wanted, spare=spare: spare)
        data.setup("validate")
    # The workers of further sets stay: each set has 2 x 3 files and a queue of results.
    sets: dict[str, VerificationSource] = {name: Black(80 if name == "x" else 20) for name in "xyz"}
    wanted: list[int] = []
    monkeypatch.setattr(module, "spare_open_files", wanted.append)
    FaceDataModule(verification=sets, eval_batch_size=10, num_workers=2).setup("validate")
    faces = SyntheticFaces(num_identities=10, images_per_identity=40)
    FaceDataModule(faces, sets, batch_size=40, eval_batch_size=10, num_workers=2).setup("fit")
    assert wanted == [31 + 2 * 8, 31 + 2 * 8 + 8 + 5 * 3]


def test_spare_files_are_the_systems(tmp_path: Path) -> None:
    spare = spare_open_files(0)
    with (tmp_path / "open").open("w"):
        assert spare_open_files(0) == (None if spare is None else spare - 1)
    if spare is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 100, hard))
            assert spare_open_files(0) == spare - 100
            assert spare_open_files(spare) == spare  # raised again
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_room_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fork(self: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", fork)
    config = make_run(tmp_path, data__verification=None, data__num_workers=1)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config)])
    assert end.value.code == 2
    assert "refuses another process" in capsys.readouterr().err.splitlines()[-1]


def test_other_errors_are_their_own() -> None:
    assert explain_lost_worker(RuntimeError("CUDA error")) is None
    with pytest.raises(FacelitError, match="worker_timeout must be at least 0"):
        FaceDataModule(worker_timeout=-1)
    assert FaceDataModule(verification={"x": Black(4)}, num_workers=0).val_dataloader()[0].timeout == 0
