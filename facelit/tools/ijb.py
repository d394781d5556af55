"""`facelit ijb`: measures a checkpoint on IJB-B or IJB-C."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from facelit.errors import FacelitError
from facelit.inference.console import open_model, remark
from facelit.storage.files import replace_file

if TYPE_CHECKING:
    from facelit.data.ijb import TemplateSet
    from facelit.inference.kept_embeddings import KeptEmbeddings
    from facelit.storage.images import BadImageError
    from facelit.verification.template_evaluation import TemplateIdentification, TemplateVerification

_SHOWN, _WORTH_A_BAR = 5, 1_000_000
_WEIGHTS = {
    "norm_score": "embedding length x detection score",
    "norm": "embedding length",
    "score": "detection score",
    "equal": "none",
}


def ijb(
    root: str,
    checkpoint: str | None = None,
    protocol: Literal["IJBB", "IJBC"] | None = None,
    out: str | None = None,
    only: Literal["1:1", "1:N"] | None = None,
    weight: Literal["norm_score", "norm", "score", "equal"] = "norm_score",
    flip_average: bool = False,
    batch_size: int = 64,
    on_bad_image: Literal["error", "skip"] = "error",
    device: str | None = None,
) -> int:
    """Measures a checkpoint on IJB-B or IJB-C: verification of pairs of templates (1:1), and searches in two galleries (1:N).

    Reads InsightFace's layout (docs/ijb.md says where to get it): loose crops, their five points, templates, pairs, galleries and
    probes. Writes figures.json, figures.tsv and curves.png. The embeddings are kept there, too: the same command continues where it was
    stopped, and another weight or part needs no embedding.

    Args:
        root: The folder with meta/ and loose_crop/, or the one that IJBB/ or IJBC/ lies in.
        checkpoint: A trained checkpoint; by default the best one of the newest run below runs/.
        protocol: The set, if both are there.
        out: The folder to write; by default the set's name and the weights' fingerprint, such as ijbc-1a2b3c4d.
        only: Measure only this part, without the other one's files.
        weight: What an image counts in its template: norm_score for the length of its embedding times its detection score, one
            of the two alone, or equal.
        flip_average: Average each embedding with the mirror image's; always done if the checkpoint's thresholds require it.
        batch_size: The number of crops that go through the network at once.
        on_bad_image: An image that cannot be read: error stops; skip leaves it out and lists it in skipped.tsv, and the exit
            status is then 1.
        device: The device for the network, such as cpu or cuda; by default a GPU if there is one.

    Returns:
        0, or 1 if images were left out.

    Raises:
        FacelitError: Files are missing or malformed, an image cannot be used, or the folder cannot be written.
    """
    if batch_size < 1:
        raise FacelitError(f"--batch_size must be at least 1, not {batch_size}.")
    from facelit.data.ijb import read_ijb
    from facelit.inference.kept_embeddings import embed_faces

    templates = read_ijb(root, protocol, only, _progress)
    model = open_model(checkpoint, device)
    flip = flip_average or model.flip_average
    folder = Path(out or f"{templates.name.replace('-', '').lower()}-{model.fingerprint[:8]}")
    remark(
        f"{templates.name}: {len(templates.paths):,} images in {len(templates.template_ids):,} templates; writing to {folder}"
    )
    faces = embed_faces(
        model, templates.paths, templates.landmarks, templates.digest, folder, flip, batch_size, on_bad_image == "skip"
    )
    if faces.kept:
        remark(f"{faces.kept:,} of {len(templates.paths):,} embeddings were there already.")
    pooled, left_out = _pool(templates, faces, weight)
    verification, identification = _measure(templates, pooled)
    how = f"mirror images averaged: {'yes' if flip else 'no'}; weight of an image: {_WEIGHTS[weight]}"
    _print(
        verification, identification, f"{templates.name}, {model.checkpoint_path}; {how}. 95 % intervals in brackets."
    )
    _report_skipped(folder, faces.skipped, left_out, len(templates.paths))
    about = {
        "set": templates.name,
        "checkpoint": str(model.checkpoint_path),
        "fingerprint": model.fingerprint,
        "flip_average": flip,
        "weight": weight,
        "images": len(templates.paths),
        "templates": len(templates.template_ids),
        "skipped": [{"image": error.place, "reason": error.reason} for error in faces.skipped],
        "templates_without_image": left_out,
    }
    _write(folder, about, verification, identification)
    return int(bool(faces.skipped))


ijb.aliases = {"checkpoint": ("--ckpt_path",)}  # type: ignore[attr-defined]  # read by facelit.cli.parser
ijb.examples = [  # type: ignore[attr-defined]  # likewise
    "datasets/IJBC --checkpoint face.ckpt --flip_average",
    "datasets --protocol IJBB --checkpoint face.ckpt --only 1:1 --weight equal",
]


def _progress(text: str, total: int) -> Any:
    from facelit.storage.progress import progress_bar

    return progress_bar(text, total, _WORTH_A_BAR)


def _pool(templates: TemplateSet, faces: KeptEmbeddings, weight: Any) -> tuple[Any, list[int]]:
    """Embeddings of the templates, and the numbers of those without an image that counts."""
    from facelit.verification.templates import image_weights, pool_templates

    usable = ~np.isnan(faces.embeddings[:, 0]) if faces.skipped else np.ones(len(faces.embeddings), np.bool_)
    weights = image_weights(faces.embeddings, templates.scores, weight)
    pooled = pool_templates(faces.embeddings, weights, templates.rows.usable(usable), len(templates.template_ids))
    return pooled, templates.template_ids[~pooled.any(axis=1)].tolist()


def _measure(templates: TemplateSet, pooled: Any) -> tuple[TemplateVerification | None, TemplateIdentification | None]:
    from facelit.verification.template_evaluation import identify_templates, verify_templates

    verification, identification = None, None
    if templates.pairs is not None:
        verification = verify_templates(pooled, templates.template_ids, templates.pairs, _progress)
    if templates.probes is not None:
        identification = identify_templates(pooled, templates.galleries, templates.probes, _progress)
    return verification, identification


def _print(
    verification: TemplateVerification | None, identification: TemplateIdentification | None, heading: str
) -> None:
    from facelit.verification.template_report import identification_lines, verification_lines

    print(heading)
    if verification is not None:
        print("\n".join(["", *verification_lines(verification)]))
    if identification is not None:
        print("\n".join(["", *identification_lines(identification)]))


def _report_skipped(folder: Path, skipped: Sequence[BadImageError], left_out: Sequence[int], count: int) -> None:
    """Lists the images left out; if there are none, removes the list of an earlier run."""
    path = folder / "skipped.tsv"
    if skipped:
        rows = ["image\treason", *(f"{error.place}\t{error.reason}" for error in skipped)]
        with replace_file(path) as file:
            file.write(("\n".join(rows) + "\n").encode("utf-8", "surrogateescape"))
        remark(f"{len(skipped):,} of {count:,} images left out of the figures above:")
        for error in skipped[:_SHOWN]:
            remark(f"  {error.place}: {error.reason}")
        if len(skipped) > _SHOWN:
            remark(f"  and {len(skipped) - _SHOWN:,} more: {path}")
    else:
        path.unlink(missing_ok=True)
    if left_out:
        some = ", ".join(map(str, left_out[:_SHOWN])) + (", ..." if len(left_out) > _SHOWN else "")
        remark(
            f"Templates without an image that counts: {len(left_out):,} ({some}). Their pairs are rejected, their searches find nobody."
        )


def _write(
    folder: Path,
    about: dict[str, Any],
    verification: TemplateVerification | None,
    identification: TemplateIdentification | None,
) -> None:
    from facelit.inference.figures import save_png
    from facelit.verification.template_report import TSV_HEADER, templates_figure, tsv_rows

    parts = {"1:1": verification, "1:N": identification}
    figures = {name: found.as_dict() for name, found in parts.items() if found is not None}
    with replace_file(folder / "figures.json") as file:
        file.write((dumps({**about, **figures}, indent=2) + "\n").encode())
    with replace_file(folder / "figures.tsv") as file:
        file.write(
            "".join("\t".join(row) + "\n" for row in (TSV_HEADER, *tsv_rows(verification, identification))).encode()
        )
    with replace_file(folder / "curves.png") as file:
        save_png(templates_figure(verification, identification, f"{about['set']}: {about['checkpoint']}"), file)
    remark(f"Figures: {folder / 'figures.json'}, figures.tsv; picture: curves.png")
