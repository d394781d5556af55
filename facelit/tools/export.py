"""`facelit export`: writes a trained network for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from facelit.errors import FacelitError
from facelit.inference.console import open_model

if TYPE_CHECKING:
    from facelit.export import Exported, Metadata
    from facelit.storage.images import Crop

_NUM_CROPS = 32


def export(
    out: str | None = None,
    checkpoint: str | None = None,
    format: Literal["onnx", "torch_export", "safetensors"] | None = None,
    no_normalize: bool = False,
    no_l2: bool = False,
    input: Literal["uint8", "float32"] | None = None,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    crops: str | None = None,
    info: bool = False,
) -> int:
    """Writes a checkpoint's network as ONNX, torch.export or safetensors.

    Runs the file on crops, in batches of one and of all, and prints how far its embeddings are from the checkpoint's; if the
    difference is more than 1e-4, no file is written and the exit status is 2. The file carries what a program that uses it must
    know: the format of its input, the five points to which crops are aligned, and the checkpoint's thresholds.

    Args:
        out: The file to write: .onnx, .pt2 (torch.export) or .safetensors (only the backbone's weights). With --info: the file
            to read.
        checkpoint: The checkpoint; by default the best one of the newest run below runs/.
        format: onnx, torch_export or safetensors, whatever the file's suffix.
        no_normalize: Omit the normalisation: the input is then float32 in [-1, 1], not RGB in 0..255.
        no_l2: Omit the L2 normalisation: the cosine similarity of embeddings is then not their dot product.
        input: The type of the input, uint8 or float32; by default uint8, and float32 with --no_normalize.
        layout: The order of the input's axes: NCHW is (batch, 3, 112, 112), NHWC is (batch, 112, 112, 3).
        crops: A folder of aligned crops, of which 32 are used for the comparison; by default the built-in faces.
        info: Write nothing; print the metadata of the file OUT, as JSON.

    Returns:
        0.

    Raises:
        FacelitError: An option is wrong, a package is missing, or the file's embeddings differ from the checkpoint's.
    """
    if out is None:
        raise FacelitError("OUT is missing: facelit export OUT.onnx (or .pt2, .safetensors)")
    if info:
        from facelit.export import read_metadata

        print(json.dumps(read_metadata(out).as_dict(), indent=2))
        return 0
    from facelit.export import export_model
    from facelit.export.formats import format_of

    format_of(Path(out), format)  # a wrong suffix is reported before torch is loaded
    model = open_model(checkpoint, "cpu")
    shown, faces = _read_crops(crops)
    exported = export_model(model, out, faces, format, not no_normalize, not no_l2, input, layout)
    for line in _report(exported, model.checkpoint_path, shown):
        print(line)
    return 0


export.positional = ("out",)  # type: ignore[attr-defined]  # read by facelit.cli.parser
export.examples = [  # type: ignore[attr-defined]  # likewise
    "face.onnx",
    "face.onnx --checkpoint runs/center/version_0/checkpoints/last.ckpt --crops datasets/lfw/aligned_112",
    "face.pt2 --no_l2 --layout NHWC",
    "face.safetensors",
    "face.onnx --info",
]


def _read_crops(folder: str | None) -> tuple[str, Any]:
    """A name for the crops, and the crops themselves, uint8 (N, 112, 112, 3)."""
    import numpy as np

    if folder is None:
        from facelit.pictures.drawn_faces import draw_face

        return "built-in faces", np.stack([draw_face(0, number // 2, number % 2) for number in range(_NUM_CROPS)])
    from facelit.storage.images import list_images, read_crop

    paths = list_images(Path(folder))
    if len(paths) < 2:
        raise FacelitError(f"{folder}: fewer than two crops here (.jpg, .png, .webp, ...; option crops).")
    places = np.linspace(0, len(paths) - 1, min(_NUM_CROPS, len(paths))).astype(int)
    faces: list[Crop] = [read_crop(paths[place]) for place in places]
    return f"crops of {folder}", np.stack(faces)


def _report(exported: Exported, checkpoint: Path, shown: str) -> list[str]:
    metadata, size = exported.metadata, exported.path.stat().st_size
    batches = ", ".join(f"{value:.1e} in batches of {number}" for number, value in exported.difference.items())
    lines = [
        f"{checkpoint}: {metadata.class_path.rpartition('.')[2]}, step {metadata.step:,}",
        f"Compared with the checkpoint in {exported.opened_in} on {exported.num_crops} {shown}: largest difference {batches}.",
        f"{exported.path}: {size / 1e6:,.1f} MB",
        f"  in   {metadata.dtype} {metadata.input_shape}, {metadata.colour} in {metadata.range[0]:g}..{metadata.range[1]:g},"
        " aligned crops",
        f"  out  float32 (batch, {metadata.embedding_dim}),"
        f" {'of length 1' if metadata.l2_inside else 'not normalised: divide by the norm'}",
    ]
    return lines + _threshold_lines(metadata)


def _threshold_lines(metadata: Metadata) -> list[str]:
    if not metadata.calibration:
        return ["  no thresholds: the checkpoint has none (validate ... --verification.calibrate true measures them)"]
    lines = []
    for name, measured in metadata.calibration.items():
        thresholds = "  ".join(f"{kind} {at['threshold']:.6f}" for kind, at in measured["thresholds"].items())
        older = f" at step {measured['step']:,}" if measured["step"] != metadata.step else ""
        lines.append(f"  thresholds measured on {name}{older}, {measured['pairs']:,} pairs: {thresholds or 'none'}")
        if measured.get("flip_average"):
            lines.append(
                f"  {name} was measured with flip averaging, which the file does not do: its thresholds apply to the mean"
                " of a crop's embedding and its mirror image's."
            )
    return lines
