"""`facelit import`: somebody's weights as a facelit checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from facelit.errors import FacelitError
from facelit.storage.files import check_writable

if TYPE_CHECKING:  # torch: not for --help
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
    """Makes a facelit checkpoint of anybody's face network: PyTorch weights or ONNX.

    Recognises the architecture by the names and shapes of its parameters, and takes over how it was fed (size, colours, mean
    and std): known for each kind of weights, given by options otherwise. Everything works on the checkpoint as on one of
    facelit's own: validate, verify, identify, embed, export, card, and fit --model.init_backbone. Nothing of the file is
    executed. `facelit models` lists what is known.

    Args:
        source: The file: .pth, .pt, .ckpt, .safetensors, ... or .onnx.
        target: The checkpoint to write.
        size: Height and width of the images that the network takes, as 112 96.
        colour: Order of the colours that it takes.
        range: What pixels were turned into: -1..1 is (x - 127.5) / 127.5, imagenet ImageNet's mean and std.
        mean: Instead of a range: what was subtracted from red, green and blue in 0..255; one number stands for all three.
        std: And what they were divided by.
        l2: Divide embeddings by their length.
        flip_average: Average each embedding with the mirror image's, for good.
        pairs: Check how it is fed on these pairs of people: a pairs file in LFW's format, or an InsightFace .bin.
        root: Folder of the aligned crops that a pairs file names.
        key: Which of several sets of weights in the file, as state_dict_ema.
        output: Which of an ONNX's several outputs is the embedding.
        architecture: The name that timm or torchvision has for the network, where it is one of theirs: finds it faster.
        overwrite: Replace the checkpoint, where there is one.

    Raises:
        FacelitError: The file is none that facelit knows, is damaged, or would run code; or the checkpoint cannot be written.
    """
    _check_target(Path(source), Path(target), overwrite)
    verification = _open_pairs(pairs, root)
    from facelit.importing.checkpoint import make_checkpoint, write_checkpoint
    from facelit.importing.network import open_network
    from facelit.importing.weights import is_checkpoint

    if is_checkpoint(source):
        raise FacelitError(f"{source} is a facelit checkpoint already: use it as it is.")
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
    """Before the work, not after it."""
    if target.is_dir():
        raise FacelitError(f"{target} is a folder: name a file, such as {target / source.stem}.ckpt.")
    if not target.absolute().parent.is_dir():
        raise FacelitError(f"{target}: there is no folder {target.parent}. Make it first.")
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
        raise FacelitError(f"--pairs {pairs} names crops: say where they lie, --root FOLDER.")
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
    """What is known of how the network was fed, under what the user says."""
    from facelit.importing.kinds.kind import RANGES

    feed = known._replace(l2=known.l2 or l2, flip_average=known.flip_average or flip_average)
    if size is not None:
        height, width = _numbers("size", size, (2,))
        if not (height.is_integer() and width.is_integer() and min(height, width) >= 1):
            raise FacelitError(f"--size {' '.join(map(str, size))}: height and width in pixels, as 112 96.")
        feed = feed._replace(size=(int(height), int(width)))
    if colour is not None:
        feed = feed._replace(colour=colour)
    if range is not None and (mean or std):
        raise FacelitError("--range says mean and std already: give one or the other.")
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
    told = "assumed: give --range, --colour, --size, or check with --pairs" if network.assumed else "known of this kind"
    if feed != network.feed:
        told = "as the options say"
    print(f"Fed {feed.describe()} ({told}).")
    for note in network.notes:
        print(note)


def _check_feed(network: ForeignNetwork, feed: Feed, pairs: VerificationSource | None) -> None:
    from facelit.importing.feeding import clearly_better, compare_conventions, try_out

    warning = try_out(network, feed)
    if warning is not None:
        print(f"Warning: {warning}")
    if pairs is None:
        hint = "--pairs FILE --root FOLDER compares it with other conventions"
        print(f"Ran on drawn faces; how it was fed was not checked ({hint}).")
        return
    chosen, best = compare_conventions(network, feed, pairs)
    print(f"On pairs: genuine and impostor scores {chosen.separation:.2f} standard deviations apart.")
    if clearly_better(best, chosen):
        print(
            f"Warning: fed {best.feed.describe()} they are {best.separation:.2f} apart, which is clearly better. Import it"
            f" again with {_options(best.feed, feed)}."
        )


def _options(feed: Feed, other: Feed) -> str:
    """What to type for a convention."""
    from facelit.importing.kinds.kind import RANGES

    words = [f"--colour {feed.colour}"] if feed.colour != other.colour else []
    name = next((name for name, usual in RANGES.items() if (usual.mean, usual.std) == (feed.mean, feed.std)), None)
    if name is not None and (feed.mean, feed.std) != (other.mean, other.std):
        words.append(f"--range {name}")
    return " ".join(words)
