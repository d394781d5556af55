"""`facelit check --checkpoint`: faces of the set again, label noise, and the lists that are written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.check import faces as faces_module
from facelit.check.faces import embed_groups, find_outliers, mean_of
from facelit.data.identity_folder import IdentityFolder
from facelit.errors import FacelitError
from facelit.storage.open import open_store
from facelit.tools.check import check
from numbered_people import People, axis, unit


def test_outliers_are_those_of_the_rule() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.uniform(0, 1, rng.integers(1, 12)).astype(np.float32)
        middle = sorted(scores.tolist())
        half = len(middle) // 2
        median = middle[half] if len(middle) % 2 else (middle[half - 1] + middle[half]) / 2
        literal = [score < 0.30 or (score < 0.40 and score < median - 0.30) for score in scores.tolist()]
        assert find_outliers(scores).tolist() == literal
    assert find_outliers(np.array([0.35, 0.8, 0.9], np.float32)).tolist() == [True, False, False]
    assert find_outliers(np.array([0.35, 0.5, 0.6], np.float32)).tolist() == [False, False, False]


def test_groups_come_whole_whatever_the_batches(
    people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    for number in range(23):
        people.add(tmp_path / "data" / "one" / f"{number:02d}.png", unit(rng, 1)[0])
    store = open_store(tmp_path / "data")
    rows, groups = rng.permutation(23)[:19], np.sort(rng.integers(0, 6, 19))[rng.permutation(19)]
    for batch in (1, 4, 19, 64):
        monkeypatch.setattr(faces_module, "_BATCH", batch)
        seen = []
        for group, own, embeddings in embed_groups(store, rows, groups, people.embed):
            seen.append(group)
            assert own.tolist() == rows[groups == group].tolist()
            np.testing.assert_array_equal(embeddings, np.stack([people.vectors[row] for row in own]).astype(np.float32))
        assert seen == sorted(set(groups.tolist()))
    assert list(embed_groups(store, rows[:0], groups[:0], people.embed)) == []


def test_the_mean_is_of_unit_length_and_so_are_the_cosines() -> None:
    embeddings = unit(np.random.default_rng(3), 5)
    mean, scores = mean_of(embeddings)
    plain = embeddings.astype(float).mean(0)
    np.testing.assert_allclose(mean, plain / np.linalg.norm(plain), atol=1e-6)
    np.testing.assert_allclose(scores, embeddings @ plain / np.linalg.norm(plain), atol=1e-6)
    opposite = np.array([[1, 0], [-1, 0]], np.float32)
    assert np.isfinite(mean_of(opposite)[1]).all()


def planted(people: People, tmp_path: Path) -> None:
    """Ann is in the set as number 7; Bob has one of Eve's crops and two that are nearly one; Cy is in the set by name alone."""
    data, lfw = tmp_path / "data", tmp_path / "lfw"
    for number, cosine in enumerate((0.95, 0.9, 0.97)):
        people.add(data / "Ann" / f"{number}.png", axis(0, 10 + number, cosine))
    for number in range(5):
        people.add(data / "Bob" / f"{number}.png", axis(1, 14 + number, 0.8))
    people.add(data / "Bob" / "5.png", axis(2, 19, 0.9))
    copy = people.vectors[4].copy()
    copy[30] = 0.05
    people.add(data / "Bob" / "6.png", copy)
    people.add(data / "Cy" / "0.png", axis(3))
    people.add(data / "Dan" / "0.png", axis(0, 4, 0.3))
    people.add(lfw / "007" / "007_0001.png", axis(0, 20, 0.9))
    people.add(lfw / "cy" / "cy_0001.png", axis(5))


def test_what_is_planted_is_found_and_left_out(people: People, tmp_path: Path, capsys) -> None:
    planted(people, tmp_path)
    assert check("data", against="lfw", checkpoint="x.ckpt") == 0
    report = json.loads(Path("check-data.json").read_text())
    found = {finding["key"]: finding for finding in report["findings"]}
    assert report["options"] == {"min_images": 2, "checkpoint": "x.ckpt", "outlier": 0.3, "near_copy": None}
    assert report["against"][0]["threshold"] == 0.5
    ann = np.stack(people.vectors[:3]).sum(0)
    score = float(ann @ people.vectors[12] / np.linalg.norm(ann))
    assert people.vectors[12][0] == pytest.approx(0.9)
    assert found["in_verification_by_face"]["items"] == [
        {
            "identity": "Ann",
            "images": 3,
            "verification": [{"set": "lfw", "name": "007", "score": pytest.approx(score, abs=1e-4)}],
        }
    ]
    assert [item["image"] for item in found["outliers"]["items"]] == ["Bob/5.png"]
    assert [(item["image"], item["kept"]) for item in found["near_copies"]["items"]] == [("Bob/6.png", "Bob/1.png")]
    people_list, image_list = Path("check-data-exclude-identities.txt"), Path("check-data-exclude-images.txt")
    assert [line.split("\t")[0] for line in people_list.read_text().splitlines()[1:]] == ["Ann", "Cy"]
    assert [line.split("\t")[0] for line in image_list.read_text().splitlines()[1:]] == ["Bob/5.png", "Bob/6.png"]
    out = capsys.readouterr().out
    assert "2 identities to leave out: --data.train.exclude_identities check-data-exclude-identities.txt" in out
    with Image.open("check-data-borderline.png") as sheet:
        assert sheet.size[1] > 500
    folder = IdentityFolder("data", exclude_identities=str(people_list), exclude_images=str(image_list))
    assert folder.identities == ["Bob", "Dan"]
    assert [Path(folder.name(index)).name for index in range(5)] == [f"{number}.png" for number in range(5)]
    # A later run that finds nothing leaves no list of the former.
    check("data", checkpoint="x.ckpt", outlier=-1, near_copy=1)
    assert not people_list.exists()
    assert not image_list.exists()


def test_limits_of_the_user_s_own(people: People, tmp_path: Path) -> None:
    planted(people, tmp_path)
    check("data", against="lfw", checkpoint="x.ckpt", threshold=0.2, outlier=-1, near_copy=0.6, report="r.json")
    found = {finding["key"]: finding["count"] for finding in json.loads(Path("r.json").read_text())["findings"]}
    assert (found["in_verification_by_face"], found["outliers"]) == (2, 0)
    assert found["near_copies"] > 2
    assert Path("r-exclude-images.txt").is_file()


@pytest.mark.parametrize("option", ["threshold", "outlier", "near_copy"])
def test_slips_are_told(people: People, tmp_path: Path, option: str) -> None:
    planted(people, tmp_path)
    with pytest.raises(FacelitError, match=f"option {option}: .*--checkpoint"):
        check("data", **{option: 0.5})  # type: ignore[arg-type]
    with pytest.raises(FacelitError, match=f"option {option}: .* between -1 and 1"):
        check("data", checkpoint="x", **{option: 1.5})  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "lfw"]


def test_a_bin_is_compared_image_by_image(people: People, tmp_path: Path) -> None:
    import pickle

    planted(people, tmp_path)
    crops = [path.read_bytes() for path in sorted((tmp_path / "lfw").rglob("*.png"))]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((crops, [True])))
    check("data", against="lfw.bin", checkpoint="x.ckpt", report="r.json")
    (found,) = [f for f in json.loads(Path("r.json").read_text())["findings"] if f["key"] == "in_verification_by_face"]
    assert [(item["identity"], item["verification"][0]["name"]) for item in found["items"]] == [("Ann", "lfw.bin/0")]


def test_names_that_no_line_holds_are_told(people: People, tmp_path: Path, capsys) -> None:
    for number, name in enumerate(("#hash", "a\tb", " edge", "plain")):
        people.add(tmp_path / "data" / name / "0.png", axis(number))
        people.add(tmp_path / "lfw" / f"p{number}" / "0.png", axis(number))
    check("data", against="lfw", checkpoint="x.ckpt")
    text = Path("check-data-exclude-identities.txt").read_text()
    assert [line.split("\t")[0] for line in text.splitlines()[1:]] == ["plain"]
    assert "3 identities are missing from it" in capsys.readouterr().out


def test_nothing_of_the_table_is_cut_in_a_log(
    people: People, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a_rather_long_name_of_a_person_" * 4
    people.add(tmp_path / "data" / name / "the_only_image_there_is.png", axis(0))
    people.add(tmp_path / "data" / "b" / "0.png", axis(1))
    check("data")
    assert f"{name}: 1 image\n" in capsys.readouterr().out.replace(" \n", "\n") + "\n"
