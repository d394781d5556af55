"""How far apart networks put photos of one person and of different people, and a picture of it: people nobody trained on.

For each checkpoint, over all people of --crops with at least --photos photos: the mean distance of a photo's embedding to the mean of
its person's (intra), the mean distance between the means of two people (inter), and their ratio, on embeddings as they are and divided by
their lengths. Center loss is about the first, which shrinks when everything shrinks: the ratio is what counts.

The picture shows the --people people with the most photos, by t-SNE (scikit-learn) of the normalised embeddings; as numbers and colours.

    python -m experiments.faces.spread --crops datasets/lfw/aligned_112 softmax=softmax.ckpt center=center.ckpt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

import facelit
from facelit.data import IdentityFolder
from facelit.data.augmentation import normalize
from facelit.errors import FacelitError
from facelit.storage.progress import progress_bar
from harness.reporting import print_table, write_json

Matrix = npt.NDArray[np.float64]


class Spread(NamedTuple):
    """Mean distance of embeddings to their person's mean, and between the means of two people."""

    intra: float
    inter: float

    @property
    def ratio(self) -> float:
        """The smaller, the better people come apart."""
        return self.intra / self.inter


def measure(embeddings: Matrix, labels: npt.NDArray[np.integer]) -> Spread:
    """The spread of embeddings (N, D) of the people labels (N,) says they are of.

    Each person counts once in the mean over people, however many photos there are.
    """
    people = np.unique(labels)
    means = np.stack([embeddings[labels == person].mean(axis=0) for person in people])
    own = [
        np.linalg.norm(embeddings[labels == person] - mean, axis=1).mean()
        for person, mean in zip(people, means, strict=True)
    ]
    squares = (means**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * means @ means.T, 0))
    return Spread(float(np.mean(own)), float(distances[np.triu_indices(len(people), 1)].mean()))


@torch.inference_mode()
def embed(checkpoint: Path, folder: IdentityFolder) -> Matrix:
    """Embeddings (N, D) of all crops, not normalised."""
    backbone = facelit.load(checkpoint, device="cpu").backbone
    rows = []
    with progress_bar(str(checkpoint), len(folder)) as show:
        for start in range(0, len(folder), 32):
            crops = np.stack([folder.image(index) for index in range(start, min(start + 32, len(folder)))])
            rows.append(backbone(normalize(torch.from_numpy(crops).permute(0, 3, 1, 2))))
            show(start + len(crops))
    return torch.cat(rows).double().numpy()


def picture(embeddings: dict[str, Matrix], labels: npt.NDArray[np.integer]) -> Figure:
    """A map for each network; a person's photos have one colour and their number."""
    figure = Figure(figsize=(6.4 * len(embeddings), 6.4), layout="constrained")
    people = np.unique(labels)
    for place, (name, rows) in enumerate(embeddings.items(), 1):
        axes = figure.add_subplot(1, len(embeddings), place)
        flat = TSNE(perplexity=min(30, len(rows) // 4), random_state=0, metric="cosine", init="pca").fit_transform(rows)
        for number, person in enumerate(people):
            points = flat[labels == person]
            axes.scatter(
                points[:, 0], points[:, 1], s=9, color=f"C{number % 10}", marker="os"[number // 10 % 2], alpha=0.7
            )
            x, y = np.median(points, axis=0)
            axes.text(x, y, str(number + 1), fontsize=9, weight="bold", ha="center", va="center")
        axes.set(title=name, xticks=[], yticks=[])
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--crops", type=Path, default=Path("datasets/lfw/aligned_112"))
    parser.add_argument("--photos", type=int, default=5, help="people with fewer are left out")
    parser.add_argument("--people", type=int, default=20, help="people in the picture")
    parser.add_argument("--out", type=Path, default=Path("spread"), help="<out>.png and <out>.json")
    arguments = parser.parse_args()
    try:
        named = [text.partition("=") for text in arguments.checkpoints]
        if wrong := [name for name, equals, path in named if not equals or not Path(path).is_file()]:
            raise FacelitError(f"{wrong[0]}: expected NAME=CHECKPOINT, a file that exists.")
        folder = IdentityFolder(arguments.crops, arguments.photos)
        found = {name: embed(Path(path), folder) for name, _, path in named}
    except FacelitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    labels = np.asarray(folder.labels)
    table, contents = [], {}
    for name, rows in found.items():
        raw, normalised = (measure(each, labels) for each in (rows, _directions(rows)))
        table.append([name, *(f"{value:.3f}" for one in (raw, normalised) for value in (*one, one.ratio))])
        contents[name] = {"raw": raw._asdict(), "normalised": normalised._asdict()}
    print(f"{len(folder):,} photos of {folder.num_identities:,} people")
    print_table(["network", "intra", "inter", "ratio", "normalised: intra", "inter", "ratio"], table)
    most = np.argsort(-np.bincount(labels), kind="stable")[: arguments.people]
    chosen = np.isin(labels, most)
    picture({name: _directions(rows)[chosen] for name, rows in found.items()}, labels[chosen]).savefig(
        arguments.out.with_suffix(".png"), dpi=110
    )
    write_json(arguments.out.with_suffix(".json"), contents)
    return 0


def _directions(rows: Matrix) -> Matrix:
    directions: Matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return directions


if __name__ == "__main__":
    sys.exit(main())
