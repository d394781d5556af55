"""`facelit import`: turns weights from elsewhere into a facelit checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from facelit.errors import FacelitError
from facelit.storage.files import check_writable

if TYPE_CHECKING:  # they import torch, which --help must not wait for
    from facelit.data import VerificationSource
    from facelit.importing.kinds import Feed
    from facelit.importing.network import ForeignNetwork


def import_(
    source: str,
    target: str,
    size: list[int] | None = None,
    colour: Literal["RGB", "BGR"] | None = None,
    range: Literal["-1..1", "0..1", "0..255", "imagenet"] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    l2: bool = False,
    flip_average: bool = False,
    pairs: str | None = None,
    root: str | None = None,
    key: str | None = None,
    output: str | None = None,
    architecture: str | None = None,
    overwrite: bool = False,
) -> int:
    """Makes a facelit checkpoint from any face network: PyTorch weights or ONNX.

    Recognises the architecture by the names and shapes of its parameters, and adopts its preprocessing (size, colours, mean and
    std), which is known for each kind of weights and can be set by options. The checkpoint then works like one of facelit's own:
    validate, verify, identify, embed, export, card, and fit --model.init_backbone. No code in the file is executed.
    `facelit models` lists the known networks.

    Args:
        source: The file: .pth, .pt, .ckpt, .safetensors, ... or .onnx.
        target: The checkpoint to write.
        size: The height and width of the network's input, such as 112 96.
        colour: The order of the colours in its input.
        range: The range of its pixels: -1..1 is (x - 127.5) / 127.5, imagenet uses ImageNet's mean and std.
        mean: Instead of a range: the mean subtracted from red, green and blue in 0..255; one number applies to all three.
        std: The divisor of red, green and blue after that.
        l2: Divide embeddings by their length.
        flip_average: Always average each embedding with the mirror image's.
        pairs: Check the preprocessing on these pairs of people: a pairs file in LFW's format, or an InsightFace .bin.
        root: The folder of the aligned crops named in a pairs file.
        key: Which of several sets of weights in the file, such as state_dict_ema.
        output: Which of an ONNX file's several outputs is the embedding.
        architecture: The name of the network in timm or torchvision, if it is one of theirs: finds it faster.
        overwrite: Replace an existing checkpoint.

    Raises:
        FacelitError: The file is of no known kind, is damaged, or would run code; or the checkpoint cannot be written.
    """
    _check_target(Path(source), Path(target), overwrite)
    verification = _open_pairs(pairs, root)
    from facelit.importing.checkpoint import make_checkpoint, write_checkpoint
    from facelit.importing.network import open_network
    from facelit.importing.weights import is_checkpoint

    if is_checkpoint(source):
        raise FacelitError(f"{source} is already a facelit checkpoint: use it directly.")
    network = open_network(source, key, output, architecture)
    feed = _choose_feed(network.feed, size, colour, range, mean, std, l2, flip_average)
    _describe(network, feed, Path(source).name)
    _check_feed(network, feed, verification)
    write_checkpoint(make_checkpoint(network, feed, Path(source)), Path(target))
    print(f"Wrote {target}. Measure it, and store its thresholds:")
    print(f"  python main.py validate --config configs/center.yaml --ckpt_path {target} --verification.calibrate true")
    return 0


import_.examples = [  # type: ignore[attr-defined]  # read by facelit.cli.parser
    "mobilefacenet.pt mobilefacenet.ckpt",
    "backbone.pth r50.ckpt --pairs datasets/lfw/pairs.txt --root datasets/lfw/aligned_112",
    "w600k_r50.onnx w600k.ckpt",
    "mine.pth mine.ckpt --colour BGR --range 0..1 --size 112 96",
]


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    """Checks the target before the work starts."""
    if target.is_dir():
        raise FacelitError(f"{target} is a folder: name a file, such as {target / source.stem}.ckpt.")
    if not target.absolute().parent.is_dir():
        raise FacelitError(f"{target}: there is no folder {target.parent}. Create it first.")
    if target.exists() and source.exists() and target.samefile(source):
        raise FacelitError(f"{target}: the checkpoint would replace the weights themselves: name another file.")
    if target.exists() and not overwrite:
        raise FacelitError(f"{target} exists already: name another file, or replace it with --overwrite.")
    check_writable(target, "target")


def _open_pairs(pairs: str | None, root: str | None) -> VerificationSource | None:
    if pairs is None:
        if root is not None:
            raise FacelitError("--root is the folder of the crops that --pairs names: give --pairs too.")
        return None
    from facelit.data import PairsBin, PairsFolder

    if pairs.endswith(".bin"):
        return PairsBin(pairs)
    if root is None:
        raise FacelitError(f"--pairs {pairs} names crops: give their folder, --root FOLDER.")
    return PairsFolder(root, pairs)


def _choose_feed(
    known: Feed,
    size: list[int] | None,
    colour: str | None,
    range: str | None,
    mean: list[float] | None,
    std: list[float] | None,
    l2: bool,
    flip_average: bool,
) -> Feed:
    """The network's known preprocessing, overridden by the user's options."""
    from facelit.importing.kinds.kind import RANGES

    feed = known._replace(l2=known.l2 or l2, flip_average=known.flip_average or flip_average)
    if size is not None:
        height, width = _numbers("size", size, (2,))
        if not (height.is_integer() and width.is_integer() and min(height, width) >= 1):
            raise FacelitError(
                f"--size {' '.join(map(str, size))}: must be height and width in pixels, such as 112 96."
            )
        feed = feed._replace(size=(int(height), int(width)))
    if colour is not None:
        feed = feed._replace(colour=colour)
    if range is not None and (mean or std):
        raise FacelitError("--range already sets mean and std: give one or the other.")
    if range is not None:
        feed = feed._replace(mean=RANGES[range].mean, std=RANGES[range].std)
    if mean is not None:
        feed = feed._replace(mean=_triple("mean", mean))
    if std is not None:
        feed = feed._replace(std=_triple("std", std))
        if min(feed.std) <= 0:
            raise FacelitError(f"--std {' '.join(map(str, std))}: must be above 0.")
    return feed


def _triple(option: str, values: list[float]) -> tuple[float, float, float]:
    numbers = _numbers(option, values, (1, 3))
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def _numbers(option: str, values: list[int] | list[float], counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        wanted = " or ".join(map(str, counts))
        raise FacelitError(
            f"--{option} {' '.join(map(str, values))}: {wanted} number{'s' * (counts != (1,))} are expected."
        )
    return numbers


def _describe(network: ForeignNetwork, feed: Feed, name: str) -> None:
    print(f"{name}: {network.title}, embeddings of {network.embedding_dim} numbers.")
    told = (
        "assumed: give --range, --colour, --size, or check with --pairs" if network.assumed else "known for this kind"
    )
    if feed != network.feed:
        told = "set by options"
    print(f"Input: {feed.describe()} ({told}).")
    for note in network.notes:
        print(note)


def _check_feed(network: ForeignNetwork, feed: Feed, pairs: VerificationSource | None) -> None:
    from facelit.importing.feeding import clearly_better, compare_conventions, try_out

    warning = try_out(network, feed)
    if warning is not None:
        print(f"Warning: {warning}")
    if pairs is None:
        hint = "--pairs FILE --root FOLDER compares it with other conventions"
        print(f"Ran on drawn faces; the preprocessing was not checked ({hint}).")
        return
    chosen, best = compare_conventions(network, feed, pairs)
    print(f"On pairs: genuine and impostor scores are {chosen.separation:.2f} standard deviations apart.")
    if clearly_better(best, chosen):
        print(
            f"Warning: with {best.feed.describe()} they are {best.separation:.2f} apart, which is clearly better. Import it"
            f" again with {_options(best.feed, feed)}."
        )


def _options(feed: Feed, other: Feed) -> str:
    """The options for a preprocessing convention."""
    from facelit.importing.kinds.kind import RANGES

    words = [f"--colour {feed.colour}"] if feed.colour != other.colour else []
    name = next((name for name, usual in RANGES.items() if (usual.mean, usual.std) == (feed.mean, feed.std)), None)
    if name is not None and (feed.mean, feed.std) != (other.mean, other.std):
        words.append(f"--range {name}")
    return " ".join(words)
