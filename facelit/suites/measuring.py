"""Several checkpoints on several sets: what is stored is taken, the rest is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facelit.errors import FacelitError
from facelit.inference import FaceModel, load
from facelit.inference.console import remark
from facelit.storage.files import replace_file
from facelit.suites.breakdowns import SetBreakdowns, ThresholdRule, break_down, match_groups, missing_line
from facelit.suites.groups_file import GroupsFile, ImageGroups
from facelit.suites.score_folder import (
    ScoreFolder,
    checkpoint_names,
    file_digest,
    find_checkpoints,
    groups_path,
    write_json,
)
from facelit.suites.scoring import PairScorer
from facelit.suites.sets import ReadSet, SuiteSet, open_sets, read_set
from facelit.suites.table import Comparisons, as_dict, as_tsv, compare_all
from facelit.verification.protocol import VerificationResult
from facelit.verification.scored_pairs import ScoredPairs


@dataclass(frozen=True, eq=False)
class Measurement:
    """What `measure` found.

    Attributes:
        results: Figures by checkpoint, then by set.
        comparisons: McNemar's tests of every two checkpoints.
        breakdowns: Rates by group, by checkpoint and set, where groups were asked for.
        absent: Sets that were left out, and what of them is absent.
    """

    results: dict[str, dict[str, VerificationResult]]
    comparisons: Comparisons
    breakdowns: dict[str, dict[str, SetBreakdowns]]
    absent: dict[str, str]

    def write(self, out: Path) -> None:
        """Writes `suites.tsv` and `suites.json`, and `<set>.groups.json` beside the scores.

        Raises:
            FacelitError: A file cannot be written.
        """
        for checkpoint, sets in self.breakdowns.items():
            for name, found in sets.items():
                write_json(groups_path(out / checkpoint, name), found.as_dict())
        with replace_file(out / "suites.tsv") as file:
            file.write(as_tsv(self.results).encode("utf-8", "surrogatepass"))
        write_json(out / "suites.json", as_dict(self.results, self.comparisons, self.absent))


def measure(
    checkpoints: Sequence[str],
    configured: Mapping[str, Any],
    only: Sequence[str] | None,
    allow_missing: bool,
    out: Path | None,
    groups: Path | None,
    rule: ThresholdRule,
    flip_average: bool,
    batch_size: int,
    device: str | None,
) -> Measurement:
    """Measures checkpoints on sets.

    Args:
        checkpoints: Files, or folders of runs.
        configured: The sets; see `open_sets`.
        only: See `open_sets`.
        allow_missing: See `open_sets`.
        out: Where scores are stored, and taken from if they are those of the same weights and pairs; None to store nothing.
        groups: A groups file; see `GroupsFile`.
        rule: The threshold for the groups.
        flip_average: Whether to average embeddings with the mirror image's.
        batch_size: The number of crops that go through a network at once.
        device: The device for the networks.

    Raises:
        FacelitError: Something cannot be used; as far as it can be known, before the work.
    """
    paths = find_checkpoints(checkpoints)
    names = checkpoint_names(paths, flip_average)
    file = None if groups is None else GroupsFile(groups)
    sets, absent = open_sets(configured, only, allow_missing)
    image_groups = _match(file, sets, rule) if file else {}
    folders = [
        None if out is None else ScoreFolder(out / name, path, file_digest(path), flip_average)
        for name, path in zip(names, paths, strict=True)
    ]
    read = [read_set(one) for one in sets]
    stored = [{one.suite_set.name: folder.load(one) if folder else None for one in read} for folder in folders]
    # All of them before the work: the last checkpoint may be none.
    models = [None if all(found.values()) else _load(path, device) for path, found in zip(paths, stored, strict=True)]
    for model, folder in zip(models, folders, strict=True):
        if model and folder:
            folder.make()
    scores = {
        name: _score(name, model, read, found, folder, flip_average, batch_size)
        for name, model, found, folder in zip(names, models, stored, folders, strict=True)
    }
    results = {name: {key: pairs.evaluate() for key, pairs in found.items()} for name, found in scores.items()}
    breakdowns = {
        name: {
            one.name: break_down(one, image_groups[one.name], scores[name][one.name], results[name][one.name], rule)
            for one in sets
            if one.name in image_groups
        }
        for name in (names if file else [])
    }
    return Measurement(results, compare_all(scores) if len(scores) > 1 else [], breakdowns, absent)


def _match(file: GroupsFile, sets: Sequence[SuiteSet], rule: ThresholdRule) -> dict[str, ImageGroups]:
    """The groups of each set's images; says which are not known."""
    found = match_groups(file, sets)
    for one in sets:
        if one.name not in found:
            remark(f"{one.name}: none of its images is in {file.path}, so it has no groups.")
            continue
        rule.check(one)
        if line := missing_line(one.name, found[one.name], len(one.names), file):
            remark(line)
    return found


def _load(path: Path, device: str | None) -> FaceModel:
    try:
        model = load(path, device)
    except FacelitError as error:
        if path.suffix == ".ckpt":
            raise
        raise FacelitError(
            f"{error} To measure another network, import it first: facelit import {path} NEW.ckpt"
        ) from None
    if model.drawings.trained:
        remark(f"{path} was trained on facelit's drawn faces: what it says about photos of people means nothing.")
    return model


def _score(
    name: str,
    model: FaceModel | None,
    read: Sequence[ReadSet],
    stored: Mapping[str, ScoredPairs | None],
    folder: ScoreFolder | None,
    flip_average: bool,
    batch_size: int,
) -> dict[str, ScoredPairs]:
    """Scores of a checkpoint on each set; new ones are stored at once, so that an interrupted run goes on."""
    scorer = None if model is None else PairScorer(model, name, flip_average, batch_size)
    found: dict[str, ScoredPairs] = {}
    for one in read:
        key = one.suite_set.name
        pairs = stored[key]
        if pairs is not None:
            remark(f"{name}: {key} is taken from {folder.folder if folder else ''}.")
        else:
            assert scorer is not None
            pairs = scorer.score(one)
            if folder is not None:
                folder.save(pairs, one, scorer.model)
        found[key] = pairs
    return found
