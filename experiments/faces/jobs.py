"""One row and seed: what it is trained and tested on, its commands, and a folder that records progress."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.lfw.jobs import halved, write_folds
from experiments.lfw.recipes import Options, as_arguments, key_of
from experiments.runner import ROOT, Job, Runner, read_json, write_json
from facelit.errors import FacelitError
from facelit.storage.pairs_file import read_pairs
from facelit.storage.people import read_people

HELD_OUT = 0.1
"""Share of the families (or people) that are held out to choose on."""


class PairScores(NamedTuple):
    """Cosines of a set's pairs, float64; whether each is genuine, bool; its fold, from 0; all of shape (pairs,)."""

    scores: npt.NDArray[np.float64]
    is_same: npt.NDArray[np.bool_]
    folds: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Data:
    """Where everything lies: `faces/train`, `lfw` and `cfp` below one folder."""

    root: Path

    def crops(self, name: str) -> str:
        """The crops of "lfw" or "cfp"."""
        return str(self.root / name / "aligned_112")

    def set(self, crops: str, pairs: Path) -> dict[str, Any]:
        """A verification set, as `data.verification` takes it."""
        return {"class_path": "facelit.data.PairsFolder", "init_args": {"root": crops, "pairs": str(pairs)}}

    @property
    def train(self) -> Path:
        """The outside people."""
        return self.root / "faces" / "train"

    def people(self) -> list[str]:
        """Their folders' names, sorted."""
        if not self.train.is_dir():
            raise FacelitError(f"--data {self.root}: there is no folder {self.train}.")
        return sorted(path.name for path in self.train.iterdir() if path.is_dir())


class Split:
    """Who is trained on, and what is tested: all of LFW and CFP."""

    name = "all"
    num_folds = 1
    """How many of LFW's folds the scores are of, where one row's are of several networks."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def prepare(self, folder: Path) -> tuple[Options, dict[str, Any]]:
        """Writes what the split needs into a folder.

        Returns:
            Options of the training set, and the verification sets by name.
        """
        sets = {"lfw": self.data.set(self.data.crops("lfw"), self.data.root / "lfw" / "pairs.txt")}
        for kind in ("FF", "FP"):
            sets[f"cfp_{kind.lower()}"] = self.data.set(
                self.data.crops("cfp"), self.data.root / "cfp" / f"pairs_{kind}.txt"
            )
        return {"data.train.root": str(self.data.train)}, sets


class Choosing(Split):
    """To choose a recipe: a tenth of the training families is held out, and tested together with LFW's View 1."""

    name = "choosing"

    def prepare(self, folder: Path) -> tuple[Options, dict[str, Any]]:
        """The list of those held out, a folder of links to them, and View 1's pairs in two folds."""
        held = [person for person in self.data.people() if is_held_out(person)]
        (folder / "held-out.txt").write_text("\n".join(held) + "\n", encoding="utf-8")
        link_people(folder / "held-out", {person: self.data.train / person for person in held})
        view1 = read_pairs(self.data.root / "lfw" / "lists" / "pairsDevTest.txt", option="--data")
        write_folds(folder / "view-1.txt", halved(view1, "View 1"))
        own = {"class_path": "facelit.data.IdentityPairs", "init_args": {"root": str(folder / "held-out")}}
        sets = {"held_out": own, "view_1": self.data.set(self.data.crops("lfw"), folder / "view-1.txt")}
        excluded = {"data.train.exclude_identities": str(folder / "held-out.txt")}
        return {"data.train.root": str(self.data.train)} | excluded, sets


class WithLfw(Split):
    """LFW with outside data: people of LFW are trained on too.

    Args:
        data: Where everything lies.
        tested: View 2: the folds whose pairs are tested, while the people of the others are trained on. None is View 1, to choose a
            recipe: the training people of its development set, and its test pairs.
    """

    def __init__(self, data: Data, tested: Sequence[int] | None) -> None:
        super().__init__(data)
        self.tested = tested
        self.num_folds = len(tested or [1])
        self.name = "fold-" + "-".join(f"{fold:02d}" for fold in tested) if tested else "view-1"

    def prepare(self, folder: Path) -> tuple[Options, dict[str, Any]]:
        """A folder of links to all who are trained on, and the tested pairs: a single fold's in two halves."""
        lists, pairs_file = self.data.root / "lfw" / "lists", self.data.root / "lfw" / "pairs.txt"
        if self.tested is None:
            trained = read_people(lists / "peopleDevTrain.txt")
            folds = [read_pairs(lists / "pairsDevTest.txt", option="--data")]
        else:
            trained = read_people(lists / "people.txt") - read_people(lists / "people.txt", self.tested)
            folds = [read_pairs(pairs_file, [fold], option="--data") for fold in self.tested]
        lfw = {path.name: path for path in Path(self.data.crops("lfw")).iterdir() if path.name in trained}
        link_people(folder / "people", {person: self.data.train / person for person in self.data.people()} | lfw)
        write_folds(folder / "pairs.txt", halved(folds[0], self.name) if len(folds) == 1 else folds)
        sets = {"lfw": self.data.set(self.data.crops("lfw"), folder / "pairs.txt")}
        return {"data.train.root": str(folder / "people")}, sets


def is_held_out(person: str) -> bool:
    """Whether somebody is held out to choose on: by family (`F0001` in the name), as its members look alike."""
    family = next((part for part in person.split("_") if part[:1] == "F" and part[1:].isdigit()), person)
    return int(sha256(family.encode()).hexdigest(), 16) % 1000 < 1000 * HELD_OUT


def link_people(folder: Path, people: dict[str, Path]) -> None:
    """Makes a folder of links to people's folders, in place of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():
        link.unlink()
    for name, path in people.items():
        (folder / name).symlink_to(path.resolve(), target_is_directory=True)


class FaceJob(Job):
    """One row with one seed on one split.

    Args:
        row: The row's name.
        options: The row's options, with all changes.
        seed: The run's seed.
        split: Who is trained on, and what is tested.
        out: The folder of all results.
        threads: CPU threads of the training process.
    """

    def __init__(self, row: str, options: Options, seed: int, split: Split, out: Path, threads: int) -> None:
        folder = out / row / key_of(options) / split.name / f"seed-{seed}"
        super().__init__(f"{row}, {split.name}, seed {seed}", folder, threads)
        self.row, self.options, self.seed, self.split = row, options, seed, split

    def result(self) -> dict[str, Any] | None:
        """The result of a finished job."""
        found: dict[str, Any] | None = read_json(self.folder / "result.json")
        return found

    def scores(self, name: str, flip_average: bool = False) -> PairScores:
        """The scores of a finished job on one of its sets."""
        with np.load(self.folder / f"{name}{'-flip-average' * flip_average}.npz") as arrays:
            return PairScores(arrays["scores"], arrays["is_same"], arrays["folds"])

    def fit_command(self) -> list[str]:
        """`fit`, from its last epoch if there is one; nothing is verified before the end."""
        training, _ = self.split.prepare(self.folder)
        options: Options = {"data.train": "facelit.data.IdentityFolder"} | training | self.options
        options |= {"data.verification": None, "checkpoint.save_top_k": 0} | self._where("training")
        if self.checkpoint.is_file():
            options["ckpt_path"] = str(self.checkpoint)
        return self._arguments("fit", options)

    def test_command(self, flip_average: bool) -> list[str]:
        """`validate` on all sets, with the weights of the last epoch."""
        _, sets = self.split.prepare(self.folder)
        network = {key: value for key, value in self.options.items() if not key.startswith("data.train.")}
        options: Options = network | {"data.verification": sets, "ckpt_path": str(self.checkpoint)}
        options |= {"verification.save_scores": True, "verification.hardest_pairs": 0}
        options |= {"verification.flip_average": flip_average} | self._where(_testing(flip_average))
        return self._arguments("validate", options)

    def do(self, runner: Runner) -> float:
        """Trains, then tests with and without the mirror image."""
        trained = runner.train(self)
        commands = [trained["command"]]
        sets: list[str] = []
        for flip_average in (False, True):
            commands.append(runner.execute(self, self.test_command(flip_average), "validate"))
            files = sorted((self.folder / _testing(flip_average)).glob("*-scores.tsv"))
            sets = [path.name.removesuffix("-scores.tsv") for path in files]
            for name, path in zip(sets, files, strict=True):
                kept = _read_scores(path)
                np.savez_compressed(self.folder / f"{name}{'-flip-average' * flip_average}.npz", **kept._asdict())
        found = {"row": self.row, "split": self.split.name, "seed": self.seed, "sets": sets, "threads": self.threads}
        found |= {"seconds": trained["seconds"], "options": self.options, "commands": commands}
        write_json(self.folder / "result.json", found)
        return float(trained["seconds"])

    def _where(self, version: str) -> Options:
        return {
            "trainer.logger": "TensorBoardLogger",
            "trainer.logger.save_dir": str(self.folder.parent),
            "trainer.logger.name": self.folder.name,
            "trainer.logger.version": version,
            "trainer.enable_progress_bar": False,
            "trainer.enable_model_summary": False,
        }

    def _arguments(self, subcommand: str, options: Options) -> list[str]:
        options = options | {"seed_everything": self.seed, "data.num_workers": 0}
        return [os.path.relpath(ROOT / "main.py"), subcommand, *as_arguments(options)]


def _testing(flip_average: bool) -> str:
    return f"testing{'-flip-average' * flip_average}"


def _read_scores(path: Path) -> PairScores:
    """Reads the file that `verification.save_scores` writes."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    folds, same, scores = (np.array([row[column] for row in rows]) for column in range(3))
    return PairScores(scores.astype(np.float64), same == "1", folds.astype(np.int64) - 1)
