"""One row on one fold of LFW: the tested people, the commands that train and test, and a folder that records progress."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from experiments.lfw.recipes import Options, as_arguments, key_of
from experiments.runner import ROOT, Job, Runner, read_json, write_json
from facelit.data import IdentityFolder
from facelit.errors import FacelitError
from facelit.storage.pairs_file import ImageKey, Pair, PairImages, read_pairs

OWN_OPTIONS = (
    *(
        "data.train.root",
        "data.train.exclude_",
        "data.verification",
        "data.num_workers",
        "verification.",
        "checkpoint.",
    ),
    *("trainer.logger", "trainer.enable_", "ckpt_path"),
)
"""Prefixes of the options that `Job.command` sets itself."""


class Scores(NamedTuple):
    """Cosines of a fold's pairs, float64; whether each is genuine, bool; its half, 0 or 1; all of shape (pairs,)."""

    scores: npt.NDArray[np.float64]
    is_same: npt.NDArray[np.bool_]
    halves: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Who is tested: one fold of View 2, or View 1's test pairs (fold None)."""

    lfw: Path
    fold: int | None

    @property
    def name(self) -> str:
        """The name in messages and folder names."""
        return "view-1" if self.fold is None else f"fold-{self.fold:02d}"

    @property
    def crops(self) -> Path:
        """The folder of aligned crops."""
        return self.lfw / "aligned_112"

    def pairs(self) -> list[Pair]:
        """The tested pairs."""
        if self.fold is None:
            return read_pairs(self.lfw / "lists" / "pairsDevTest.txt", option="--lfw")
        return read_pairs(self.lfw / "pairs.txt", [self.fold], option="--lfw")

    def excluded(self) -> Options:
        """Arguments of the training set that exclude the tested people."""
        if self.fold is None:
            return {"exclude_identities": str(self.lfw / "lists" / "peopleDevTest.txt")}
        return {"exclude_identities": str(self.lfw / "lists" / "people.txt"), "exclude_folds": [self.fold]}

    def training_set(self, minimum: int) -> tuple[int, int]:
        """The numbers of people and crops to train on.

        Args:
            minimum: People with fewer crops are excluded.

        Raises:
            FacelitError: A tested person is among them.
        """
        folder = IdentityFolder(self.crops, minimum, **self.excluded())
        tested = {name for pair in self.pairs() for name, _ in (pair.first, pair.second)}
        if both := sorted(tested & set(folder.identities)):
            raise FacelitError(
                f"{self.lfw}: {len(both)} people in {self.name}'s pairs would be trained on ({both[0]}, ...): the lists of"
                " people and of pairs do not match."
            )
        return folder.num_identities, len(folder)


def halved(pairs: Sequence[Pair], name: str) -> list[list[Pair]]:
    """Splits a fold's pairs into halves, each with half of the genuine and half of the impostor pairs, in order.

    Raises:
        FacelitError: The number of pairs of either kind is odd.
    """
    kinds = [[pair for pair in pairs if pair.is_same is same] for same in (True, False)]
    if any(len(kind) % 2 for kind in kinds):
        raise FacelitError(f"{name}: an odd number of genuine or impostor pairs cannot be split in half.")
    parts = [(kind[: len(kind) // 2], kind[len(kind) // 2 :]) for kind in kinds]
    return [genuine + impostor for genuine, impostor in zip(*parts, strict=True)]


def write_folds(path: Path, folds: Sequence[Sequence[Pair]]) -> None:
    """Writes a pairs file of these folds; a single fold is written as its two halves, as facelit needs at least two."""
    lines = [f"{len(folds)}\t{len(folds[0]) // 2}"]
    for pair in (pair for fold in folds for pair in fold):
        (name, number), (other, other_number) = pair.first, pair.second
        second = f"{other_number}" if pair.is_same else f"{other}\t{other_number}"
        lines.append(f"{name}\t{number}\t{second}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_scores(path: Path) -> Scores:
    """Reads the file that `verification.save_scores` writes, with the halves as folds 1 and 2."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    folds, same, scores = (np.array([row[column] for row in rows]) for column in range(3))
    return Scores(scores.astype(np.float64), same == "1", folds.astype(np.int64) - 1)


def raw_pixel_scores(crops: Path, halves: Sequence[Sequence[Pair]]) -> Scores:
    """Cosines of the grey crops, each less its own mean: the baseline for a network."""
    pairs = [pair for half in halves for pair in half]
    images = PairImages(crops)
    directions = {key: _direction(images, key) for pair in pairs for key in (pair.first, pair.second)}
    scores = [float(directions[pair.first] @ directions[pair.second]) for pair in pairs]
    half_of = np.repeat(np.arange(len(halves)), [len(half) for half in halves])
    return Scores(np.array(scores), np.array([pair.is_same for pair in pairs], np.bool_), half_of)


def _direction(images: PairImages, key: ImageKey) -> npt.NDArray[np.float64]:
    path = images.find(key)
    if path is None:
        raise FacelitError(f"{images.root}: photo {key[1]} of {key[0]}, named in the pairs, is missing (option --lfw).")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"), np.float64).ravel()
    pixels = pixels - pixels.mean()
    direction: npt.NDArray[np.float64] = pixels / np.linalg.norm(pixels)
    return direction


class LfwJob(Job):
    """One row on one split: its folder, its commands, and its progress.

    Args:
        row: The row's name.
        options: The row's options, with all changes; empty if nothing is trained (raw pixels).
        split: The tested people.
        out: The folder of all results.
        threads: CPU threads of the training process.
    """

    def __init__(self, row: str, options: Options, split: Split, out: Path, threads: int) -> None:
        super().__init__(f"{row}, {split.name}", out / row / key_of(options) / split.name, threads)
        self.row, self.options, self.split = row, options, split

    @property
    def tests(self) -> tuple[bool, ...]:
        """`verification.flip_average` of each test; raw pixels have one test, without."""
        return (False, True) if self.options else (False,)

    def result(self) -> dict[str, Any] | None:
        """The result, if the job and all its tests are done."""
        if not all(self._scores_file(flip_average).is_file() for flip_average in self.tests):
            return None
        found: dict[str, Any] | None = read_json(self.folder / "result.json")
        return found

    def scores(self, flip_average: bool = False) -> Scores:
        """The scores of a finished job."""
        with np.load(self._scores_file(flip_average)) as arrays:
            return Scores(arrays["scores"], arrays["is_same"], arrays["halves"])

    def keep(self, scores: Scores, flip_average: bool) -> None:
        """Writes a test's scores."""
        np.savez_compressed(self._scores_file(flip_average), **scores._asdict())

    def _scores_file(self, flip_average: bool) -> Path:
        return self.folder / f"scores{'-flip-average' * flip_average}.npz"

    def tested(self, flip_average: bool) -> Path:
        """The folder of a test's log."""
        return self.folder / f"testing{'-flip-average' * flip_average}"

    def command(self, subcommand: str, flip_average: bool = False) -> list[str]:
        """The command for `fit`, which resumes from the last epoch, if any, and sees no tested pair; or for `validate`."""
        training = {f"data.train.{name}": value for name, value in self.split.excluded().items()}
        options: Options = {"data.train": "facelit.data.IdentityFolder", "data.train.root": str(self.split.crops)}
        options |= training | self.options | {"data.num_workers": 0, "checkpoint.save_top_k": 0}
        options |= {
            "trainer.logger": "TensorBoardLogger",
            "trainer.logger.save_dir": str(self.folder.parent),
            "trainer.logger.name": self.folder.name,
            "trainer.logger.version": "training" if subcommand == "fit" else self.tested(flip_average).name,
            "trainer.enable_progress_bar": False,
            "trainer.enable_model_summary": False,
        }
        if subcommand == "validate":
            where = {"root": str(self.split.crops), "pairs": str(self.folder / "pairs.txt")}
            sets = {"lfw": {"class_path": "facelit.data.PairsFolder", "init_args": where}}
            options |= {"data.verification": sets, "verification.save_scores": True, "verification.hardest_pairs": 0}
            options["verification.flip_average"] = flip_average
        if subcommand == "validate" or self.checkpoint.is_file():
            options["ckpt_path"] = str(self.checkpoint)
        return [os.path.relpath(ROOT / "main.py"), subcommand, *as_arguments(options)]

    def fit_command(self) -> list[str]:
        """`fit`, from its last epoch if there is one."""
        return self.command("fit")

    def do(self, runner: Runner) -> float:
        """Trains on everybody else, then tests with and without the mirror image."""
        halves = halved(self.split.pairs(), self.split.name)
        write_folds(self.folder / "pairs.txt", halves)
        start = perf_counter()
        people, crops, commands, seconds = 0, 0, [], 0.0
        if not self.options:
            self.keep(raw_pixel_scores(self.split.crops, halves), False)
            seconds = perf_counter() - start
        else:
            people, crops = self.split.training_set(self.options["data.train.min_images_per_identity"])
            trained = runner.train(self)
            commands, seconds = [trained["command"]], trained["seconds"]
            for flip_average in self.tests:
                commands.append(runner.execute(self, self.command("validate", flip_average), "validate"))
                self.keep(read_scores(self.tested(flip_average) / "lfw-scores.tsv"), flip_average)
        found = {"row": self.row, "split": self.split.name, "people": people, "crops": crops, "seconds": seconds}
        found |= {"threads": self.threads, "options": self.options, "commands": commands}
        write_json(self.folder / "result.json", found)
        return seconds
