"""The sets that a configuration names: opened, or absent; and what makes a set the same as last time."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from facelit.data.sources import VerificationSource
from facelit.errors import FacelitError
from facelit.inference.photo_embedding import read_ahead
from facelit.storage.processes import default_jobs
from facelit.storage.progress import progress_bar

_AHEAD, _WORTH_A_BAR = 256, 2000


class SuiteSet(NamedTuple):
    """An opened set.

    Attributes:
        name: Its name in the configuration.
        source: Its images and pairs.
        root: Folder of the images; None where they are not files of their own.
        names: Name of each image: its path relative to `root`, with slashes; the source's own name where there is none.
    """

    name: str
    source: VerificationSource
    root: str | None
    names: list[str]

    def pair_names(self) -> tuple[list[str], list[str]]:
        """Names of each pair's first and second image."""
        first, second = (
            [self.names[number] for number in side]
            for side in (self.source.first.tolist(), self.source.second.tolist())
        )
        return first, second


class ReadSet(NamedTuple):
    """A set whose images have been read once.

    Attributes:
        suite_set: The set.
        digests: Hash of each image's pixels: equal crops, in this set or another, are embedded once.
        fingerprint: Hash of pixels, names, pairs and folds: scores of an equal one need not be computed again.
    """

    suite_set: SuiteSet
    digests: list[bytes]
    fingerprint: str


def open_sets(
    configured: Mapping[str, Any], only: Sequence[str] | None, allow_missing: bool
) -> tuple[list[SuiteSet], dict[str, str]]:
    """Opens the sets of a configuration.

    Args:
        configured: By name, the class (`class_path`, `init_args`) that reads the set; or a list of such alternatives, of which the
            first counts whose files are there.
        only: Open these alone; all where not given.
        allow_missing: Leave out sets whose files are absent.

    Returns:
        The sets in the configuration's order, and what is absent of each one left out.

    Raises:
        FacelitError: A set is absent and may not be, or all are; its options are wrong, or its files are damaged.
    """
    unknown = [name for name in only or [] if name not in configured]
    if unknown:
        raise FacelitError(
            f"--only {' '.join(unknown)}: there is no such set; the configuration has {', '.join(configured)}."
        )
    for name in configured:
        if not re.fullmatch(r"[\w.+-]+", str(name)):
            raise FacelitError(
                f"set {name!r}: a name is made of letters, digits and _ . + -, as its scores get a file of that name."
            )
    found: dict[str, Namespace] = {}
    absent: dict[str, str] = {}
    for name in only or configured:
        alternatives = configured[name] if isinstance(configured[name], list) else [configured[name]]
        parsed = [_parse(name, options) for options in alternatives]
        missing = [_missing_paths(options) for options in parsed]
        present = next((options for options, paths in zip(parsed, missing, strict=True) if not paths), None)
        if present is not None:
            found[name] = present
        else:
            absent[name] = " or ".join(", ".join(paths) for paths in missing) or "no files are named"
    if absent and not (allow_missing and found):
        listed = "; ".join(f"{name} ({what})" for name, what in absent.items())
        way_out = "" if not found else ", or leave absent sets out with --allow_missing"
        raise FacelitError(
            f"{len(absent)} of {len(absent) + len(found)} sets are absent: {listed}. Put them there, or name their places under `sets`"
            f" in the configuration{way_out}."
        )
    return [_open(name, options) for name, options in found.items()], absent


def _parser() -> ArgumentParser:
    import facelit.data  # noqa: F401 - its classes may then be named without their module

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--set", type=VerificationSource)
    return parser


def _parse(name: str, options: Any) -> Namespace:
    """The class and its arguments, checked against its signature."""
    if not isinstance(options, Mapping) or "class_path" not in options:
        raise FacelitError(
            f"set {name}: expected a class that reads it, such as `class_path: facelit.data.PairsBin` with `init_args: {{path: ...}}`."
        )
    try:
        parsed: Namespace = _parser().parse_object({"set": dict(options)}).set
    except (ArgumentError, TypeError, ValueError) as error:
        reason = " ".join(line.strip(" -") for line in str(error).splitlines() if line.strip())
        raise FacelitError(f"set {name}: these options do not fit ({reason[:300].rstrip('.')}).") from None
    return parsed


def _missing_paths(options: Namespace) -> list[str]:
    """Paths among the arguments where nothing is."""
    module, _, name = options.class_path.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    paths = [parameter for parameter in parameters if "Path" in str(parameters[parameter].annotation)]
    values = options.get("init_args") or {}
    named = [os.fspath(values[path]) for path in paths if values.get(path) is not None]
    return [path for path in named if not os.path.exists(path)]


def _open(name: str, options: Namespace) -> SuiteSet:
    try:
        source: VerificationSource = _parser().instantiate(Namespace(set=options)).set  # type: ignore[no-untyped-call]  # jsonargparse's own
    except FacelitError as error:
        raise FacelitError(f"set {name}: {error}") from None
    root = getattr(source, "root", None)
    if root is not None and source.names and os.path.isfile(source.names[0]):
        names = [Path(os.path.relpath(path, root)).as_posix() for path in source.names]
        if not any(path.startswith("../") for path in names):
            return SuiteSet(name, source, os.path.abspath(root), names)
    return SuiteSet(name, source, None, source.names)


def read_set(suite_set: SuiteSet) -> ReadSet:
    """Reads every image once, to know it again.

    Raises:
        BadImageError: An image cannot be read: figures over a part of a set would mean nothing.
    """
    source = suite_set.source
    source.prepare()
    digests = []
    with progress_bar(f"Reading {suite_set.name}", len(source), _WORTH_A_BAR) as show:
        for crop in read_ahead(source.image, range(len(source)), default_jobs(), _AHEAD):
            digests.append(hashlib.blake2b(np.ascontiguousarray(crop).data, digest_size=16).digest())
            show(len(digests))
    whole = hashlib.sha256(b"".join(digests))
    whole.update("\0".join(suite_set.names).encode("utf-8", "surrogatepass"))
    for part in (source.first, source.second, source.is_same, source.folds):
        whole.update(np.ascontiguousarray(part).data)
    return ReadSet(suite_set, digests, whole.hexdigest())
