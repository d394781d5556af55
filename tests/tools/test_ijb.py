"""`facelit ijb` on the command line, against plain loops over embeddings by torch alone."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facelit.cli import main
from facelit.inference import FaceModel
from ijb_layout import (
    IMAGES,
    PEOPLE,
    Layout,
    image_name,
    literal_search,
    literal_tar,
    literal_template,
    make_layout,
    shift,
)
from trained_run import TrainedRun, read


def run(*arguments: object) -> int:
    """Exit status of the program."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.fixture(scope="module")
def layout() -> Layout:
    return make_layout()


@pytest.fixture(scope="module")
def ijbc(trained: TrainedRun, layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole set: each crop of the run lies somewhere in a larger image."""
    folder = layout.write(tmp_path_factory.mktemp("ijb") / "IJBC")
    for subject in range(PEOPLE):
        for number in range(IMAGES):
            x, y = shift(subject, number)
            image = np.full((140, 150, 3), 90, np.uint8)
            image[y : y + 112, x : x + 112] = read(trained.crop(subject, number + 1))[0]
            Image.fromarray(image).save(folder / "loose_crop" / image_name(subject, number))
    return folder


@pytest.fixture(scope="module")
def measured(trained: TrainedRun, ijbc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run wrote."""
    out = tmp_path_factory.mktemp("measured")
    assert run("ijb", ijbc, "--checkpoint", trained.checkpoint, "--out", out) == 0
    return out


def literal_figures(layout: Layout, embeddings: dict[str, Any]) -> dict[str, Any]:
    """TAR at FAR 0.1 and 0.01, rank 1 and TPIR at FPIR 0.1; float64, one pair and one probe after the other."""
    weights = {name: float(np.float32(score)) for name, score in layout.scores.items()}
    ids = {template for _, template, _ in layout.media}
    templates = {one: literal_template(layout.media, one, embeddings, weights) for one in ids}
    scores: dict[int, list[float]] = {0: [], 1: []}
    for a, b, label in layout.pairs:
        scores[label].append(float(np.dot(templates[a], templates[b])))
    searches = [literal_search(gallery, layout.probes, templates) for gallery in layout.galleries.values()]
    return {
        "tar": [literal_tar(scores[1], scores[0], far) for far in (0.1, 0.01)],
        "rank": np.mean([search.rank(1) for search in searches]),
        "tpir": np.mean([search.tpir(0.1) for search in searches]),
    }


def figures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "figures.json").read_text())
    return found


def test_figures_are_those_of_plain_loops(trained: TrainedRun, layout: Layout, measured: Path) -> None:
    embeddings = np.load(measured / "embeddings.npy")
    crops = [trained.crop(subject, number + 1) for subject in range(PEOPLE) for number in range(IMAGES)]
    np.testing.assert_allclose(embeddings, trained.embed(read(*crops)), rtol=1e-3, atol=1e-4)
    names = [f"{number}.png" for number in range(1, 1 + len(embeddings))]
    expected = literal_figures(layout, dict(zip(names, embeddings, strict=True)))
    found = figures(measured)
    assert [point["tar"][0] for point in found["1:1"]["far"]] == expected["tar"]
    assert found["1:N"]["rank"]["1"][0] == expected["rank"]
    assert found["1:N"]["tpir_at_fpir"]["0.1"][0] == expected["tpir"]
    assert (found["images"], found["templates"], found["skipped"]) == (48, 54, [])
    table = [line.split("\t") for line in (measured / "figures.tsv").read_text().splitlines()]
    assert ["1:N", "mean", "rank", "1", f"{expected['rank']:.6f}"] in [row[:5] for row in table]
    assert (measured / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_embeds_nothing_and_weighs_anew(
    trained: TrainedRun, ijbc: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = shutil.copytree(measured, tmp_path / "out")
    monkeypatch.setattr(FaceModel, "embed", None)
    assert run("ijb", ijbc, "--ckpt_path", trained.checkpoint, "--out", out, "--only", "1:1", "--weight", "equal") == 0
    printed = capsys.readouterr()
    assert "48 of 48 embeddings were there already" in printed.err
    assert "weight of an image: none" in printed.out
    assert "1:N" not in figures(out)
    assert figures(out)["1:1"]["auc"] != figures(measured)["1:1"]["auc"]


def test_a_killed_run_goes_on(
    trained: TrainedRun, ijbc: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed while it wrote the 21st embedding; the result is the same to the last bit."""
    out = shutil.copytree(measured, tmp_path / "out")
    data = (measured / "embeddings.npy").read_bytes()
    row = 16 * 4
    header = len(data) - 48 * row
    (out / "embeddings.npy").write_bytes(data[: header + 20 * row + 10])
    (out / "figures.json").unlink()
    embedded: list[int] = []
    embed = FaceModel.embed

    def counting(self: FaceModel, crops: Sequence[Any], *args: Any, **options: Any) -> Any:
        embedded.append(len(crops))
        return embed(self, crops, *args, **options)

    monkeypatch.setattr(FaceModel, "embed", counting)
    assert run("ijb", ijbc, "--checkpoint", trained.checkpoint, "--out", out, "--batch_size", 10) == 0
    assert embedded == [10, 10, 8]
    np.testing.assert_allclose(np.load(out / "embeddings.npy"), np.load(measured / "embeddings.npy"), atol=1e-6)
    assert figures(out)["1:1"]["far"][0]["tar"] == figures(measured)["1:1"]["far"][0]["tar"]


def test_a_bad_image_stops_or_is_left_out_and_is_tried_again(
    trained: TrainedRun, layout: Layout, ijbc: Path, tmp_path: Path, capsys: Any
) -> None:
    """The probe template of which it is the only image is never accepted and finds nobody."""
    folder = shutil.copytree(ijbc, tmp_path / "IJBC")
    good = (folder / "loose_crop/1.png").read_bytes()
    (folder / "loose_crop/1.png").write_bytes(b"")
    options = ["--checkpoint", trained.checkpoint, "--out", tmp_path / "out"]
    assert run("ijb", folder, *options) == 2
    error = capsys.readouterr().err
    assert "1.png: cannot read this image (the file is empty)" in error
    assert error.rstrip().endswith("To go on without such images: --on_bad_image skip.")
    assert run("ijb", folder, *options, "--on_bad_image", "skip") == 1
    error = capsys.readouterr().err
    assert "1 of 48 images left out" in error
    assert "Templates without an image that counts: 1 (1000). Their pairs are rejected" in error
    assert "1.png\t" in (tmp_path / "out/skipped.tsv").read_text()
    found = figures(tmp_path / "out")
    assert found["templates_without_image"] == [1000]
    gallery = found["1:N"]["galleries"]["G1"]
    assert (gallery["searches"], gallery["rank"]["10"][0]) == (18, 17 / 18)  # of three people
    (folder / "loose_crop/1.png").write_bytes(good)
    assert run("ijb", folder, *options) == 0
    assert not (tmp_path / "out/skipped.tsv").exists()
    assert figures(tmp_path / "out")["1:N"]["galleries"]["G1"]["rank"]["10"][0] == 1


def test_points_that_are_no_face_make_a_bad_image(trained: TrainedRun, ijbc: Path, tmp_path: Path, capsys: Any) -> None:
    layout = make_layout()
    layout.points["9.png"] = [(0.0, 0.0)] * 5
    folder = layout.write(tmp_path / "IJBC")
    shutil.copytree(ijbc / "loose_crop", folder / "loose_crop", dirs_exist_ok=True)
    options = ["--checkpoint", trained.checkpoint, "--out", tmp_path / "out", "--only", "1:N"]
    assert run("ijb", folder, *options) == 2
    assert "9.png: its five points lie in one point. Mend" in capsys.readouterr().err
    assert run("ijb", folder, *options, "--on_bad_image", "skip") == 1
    assert [Path(one["image"]).name for one in figures(tmp_path / "out")["skipped"]] == ["9.png"]


def test_other_weights_or_landmarks_do_not_share_a_file(
    trained: TrainedRun, layout: Layout, ijbc: Path, measured: Path, tmp_path: Path, capsys: Any
) -> None:
    out = shutil.copytree(measured, tmp_path / "out")
    other = make_layout()
    other.points["3.png"] = other.points["4.png"]
    folder = other.write(tmp_path / "IJBC")
    options = ["--checkpoint", trained.checkpoint, "--out", out]
    assert run("ijb", folder, *options) == 2
    error = capsys.readouterr().err
    assert "embeddings.npy: holds embeddings of other images or landmarks. Name another folder with --out" in error
    described = json.loads((out / "embeddings.json").read_text())
    (out / "embeddings.json").write_text(json.dumps(described | {"checkpoint": "another"}))
    assert run("ijb", ijbc, *options) == 2
    assert "holds embeddings of another checkpoint" in capsys.readouterr().err
    (out / "embeddings.json").write_text("[")
    assert run("ijb", ijbc, *options) == 2
    assert "embeddings.json: is damaged" in capsys.readouterr().err
    (out / "embeddings.json").unlink()
    assert run("ijb", ijbc, *options) == 2
    assert "nothing says what it was made of" in capsys.readouterr().err


def test_mirror_images_have_a_file_of_their_own_and_the_folder_is_named_after_the_weights(
    trained: TrainedRun, ijbc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("ijb", ijbc.parent, "--checkpoint", trained.checkpoint, "--flip_average", "--only", "1:N") == 0
    (out,) = tmp_path.glob("ijbc-*")
    crops = read(trained.crop(0, 1))
    expected = (trained.embed(crops) + trained.embed(crops[:, :, ::-1].copy())) / 2
    np.testing.assert_allclose(np.load(out / "embeddings-flip.npy")[:1], expected, rtol=1e-3, atol=1e-4)
    assert out.name == f"ijbc-{figures(out)['fingerprint'][:8]}"
    assert "1:1" not in figures(out)


def test_bad_input_is_one_line(trained: TrainedRun, ijbc: Path, tmp_path: Path, capsys: Any) -> None:
    for options, message in (
        (["--batch_size", 0], "--batch_size must be at least 1"),
        (["--protocol", "IJBB"], "no meta files of IJBB here"),
        (["--out", ijbc / "meta/ijbc_face_tid_mid.txt"], "cannot write this file"),
    ):
        assert run("ijb", ijbc, "--checkpoint", trained.checkpoint, *options) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("error:") == 1
