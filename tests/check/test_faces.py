"""`facelit check --checkpoint`: overlap by face, label noise, near copies, and the lists that training takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.stats import gumbel_r

from facelit.check import faces as faces_module
from facelit.check import near_copies as copies_module
from facelit.check import overlap as overlap_module
from facelit.check.faces import embed_faces, embed_groups, find_outliers, mean_of
from facelit.check.near_copies import SAME_FACE, SAME_PICTURE, find_near_copies, thumbnails
from facelit.check.overlap import THRESHOLD, find_overlap, nearest, strangers_threshold
from facelit.check.scan import scan_images
from facelit.check.verification_set import VerificationSet, read_verification_sets
from facelit.data.identity_folder import IdentityFolder
from facelit.errors import FacelitError
from facelit.storage.open import open_store
from facelit.tools import check as tool
from facelit.tools.check import check

Vectors = npt.NDArray[np.float32]


class People:
    """Crops that carry the number of their embedding in their pixels, and the network that reads it."""

    def __init__(self) -> None:
        self.vectors: list[npt.NDArray[np.float64]] = []

    def add(self, path: Path, vector: npt.NDArray[np.float64]) -> None:
        number = len(self.vectors)
        self.vectors.append(vector / np.linalg.norm(vector))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (112, 112), (number // 256, number % 256, 77)).save(path)

    def embed(self, crops: npt.NDArray[np.uint8]) -> Vectors:
        numbers = crops[:, 50, 50, 0].astype(int) * 256 + crops[:, 50, 50, 1]
        return np.stack([self.vectors[number] for number in numbers]).astype(np.float32)


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> People:
    monkeypatch.chdir(tmp_path)
    made = People()
    monkeypatch.setattr(tool, "_open_network", lambda checkpoint, device: made.embed)
    return made


def axis(number: int, other: int = 0, cosine: float = 1.0, size: int = 40) -> npt.NDArray[np.float64]:
    """A vector with this cosine to the axis `number`, leaning to `other`."""
    vector = np.zeros(size)
    vector[number] = cosine
    vector[other] += np.sqrt(1 - cosine**2)
    return vector


def unit(rng: np.random.Generator, rows: int, size: int = 6) -> Vectors:
    made = rng.normal(size=(rows, size))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


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


@pytest.mark.parametrize("block", [3, 1_024])
def test_near_copies_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(copies_module, "_BLOCK", block)
    rng = np.random.default_rng(1)
    for _ in range(20):
        embeddings = unit(rng, 14, 3)
        kept: list[int] = []
        literal = []
        for number, one in enumerate(embeddings):
            alike = [(float(one @ embeddings[other]), other) for other in kept]
            best = max(alike, key=lambda pair: pair[0], default=(-2.0, -1))
            if best[0] > 0.9:
                literal.append((number, best[1]))
            else:
                kept.append(number)
        found = find_near_copies(embeddings, unread, 0.9)
        assert [pair[:2] for pair in found] == literal
        assert all(score == pytest.approx(float(embeddings[a] @ embeddings[b]), abs=1e-6) for a, b, score, _ in found)
    assert find_near_copies(embeddings[:0], unread) == []


def unread(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    raise AssertionError(f"nobody needs the pictures {numbers}")


def correlation(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Of two pictures, shrunk to 28x28 and grey, by Pillow and NumPy's `corrcoef`."""
    small = [
        np.asarray(Image.fromarray(p.mean(2).astype(np.float32)).resize((28, 28), Image.Resampling.BOX))
        for p in (one, other)
    ]
    return float(np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1])


def scene(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((112, 112)))


@pytest.mark.parametrize("block", [2, 1_024])
def test_pictures_decide_where_cosines_do_not(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(copies_module, "_BLOCK", block)
    rng = np.random.default_rng(5)
    found_by = dict.fromkeys((*SAME_PICTURE, "cosine"), 0)
    for _ in range(60):
        one, noise = scene(rng), scene(rng)
        share = rng.choice([0, 0.1, 0.25, 0.4, 1])
        other = (one[:, ::-1] if rng.random() < 0.5 else one) * (1 - share) + noise * share
        crops = np.stack([one, scene(rng), other.round().astype(np.uint8)])
        cosine = rng.choice([0.84, 0.86, 0.94, 0.96, 0.99])
        embeddings = np.stack([axis(0), axis(1), axis(0, 2, cosine)]).astype(np.float32)
        shown = max(correlation(crops[0], crops[2]), correlation(crops[0], crops[2][:, ::-1]))
        reasons = [pair for pair in SAME_PICTURE if cosine > pair[0] and shown > pair[1]]
        reasons += ["cosine"] if cosine > SAME_FACE else []
        found = find_near_copies(embeddings, crops.__getitem__)
        assert [copy[:2] for copy in found] == ([(2, 0)] if reasons else [])
        for copy in found:
            assert (copy.score, copy.correlation) == (pytest.approx(cosine, abs=1e-5), pytest.approx(shown, abs=1e-3))
        for reason in reasons:
            found_by[reason] += 1
        alone = find_near_copies(embeddings, unread, 0.95)
        assert [copy[:2] for copy in alone] == ([(2, 0)] if cosine > 0.95 else [])
    assert all(found_by.values())


def test_a_blank_picture_is_like_no_other() -> None:
    blank = thumbnails(np.full((2, 112, 112, 3), 200, np.uint8))
    assert not blank.any()
    rng = np.random.default_rng(6)
    crops = np.stack([scene(rng), scene(rng)])
    small = thumbnails(crops)
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, atol=1e-6)
    assert float(small[0] @ small[1]) == pytest.approx(correlation(crops[0], crops[1]), abs=1e-5)


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


def test_the_nearest_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap_module, "_BLOCK", 4)
    rng = np.random.default_rng(4)
    ones, others = unit(rng, 11), unit(rng, 9)
    best, scores = nearest(ones, others)
    np.testing.assert_array_equal(best, (ones @ others.T).argmax(1))
    np.testing.assert_allclose(scores, (ones @ others.T).max(1), atol=1e-6)
    best, scores = nearest(ones, ones, is_same_set=True)
    plain = ones @ ones.T
    plain[np.eye(11, dtype=bool)] = -2
    np.testing.assert_array_equal(best, plain.argmax(1))


def test_people_under_two_names_do_not_lift_the_threshold() -> None:
    rng = np.random.default_rng(7)
    strangers = unit(rng, 400, 32)
    again = strangers[:4] + 0.02 * rng.normal(size=(4, 32)).astype(np.float32)
    both = np.concatenate([strangers, again / np.linalg.norm(again, axis=1, keepdims=True)])
    highest = (strangers @ strangers.T - 2 * np.eye(400)).max(1)
    expected = gumbel_r(*gumbel_r.fit(highest)).ppf(0.99)
    assert strangers_threshold(both) == pytest.approx(expected, abs=0.03)
    assert np.quantile((both @ both.T - 2 * np.eye(404)).max(1), 0.99) > expected + 0.1  # what it would be
    assert strangers_threshold(strangers) <= np.quantile(highest, 0.99) + 1e-6


def tree_of(people: People, root: Path, means: Vectors) -> Path:
    for number, mean in enumerate(means):
        people.add(root / f"person_{number:03d}" / f"person_{number:03d}_0001.png", mean)
    return root


def test_the_threshold_is_measured_on_sets_with_enough_people(people: People, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    means = unit(rng, 120, 8)
    many = VerificationSet("many", *_set_of(tree_of(people, tmp_path / "many", means)))
    few = VerificationSet("few", *_set_of(tree_of(people, tmp_path / "few", means[:99])))
    store = open_store(tree_of(people, tmp_path / "data", unit(rng, 30, 8)))
    faces = embed_faces(store, np.arange(30), people.embed)
    plain = means @ means.T - 2 * np.eye(120)
    found = find_overlap(faces, many, people.embed, None)
    assert found is not None
    assert (found.threshold, found.measured) == (pytest.approx(strangers_threshold(means)), True)
    assert found.threshold <= np.quantile(plain.max(1), 0.99) + 1e-6
    np.testing.assert_allclose(found.scores, (faces.means @ means.T).max(1), atol=1e-6)
    assert found.found.tolist() == (found.scores >= found.threshold).tolist()
    for one, given, expected in ((few, None, THRESHOLD), (many, 0.7, 0.7)):
        found = find_overlap(faces, one, people.embed, given)
        assert found is not None
        assert (found.threshold, found.measured) == (expected, False)
    assert find_overlap(faces, VerificationSet("names", ["A"]), people.embed, None) is None


def _set_of(root: Path) -> tuple[object, ...]:
    store = open_store(root)
    return list(store.identities), store, np.arange(len(store)), scan_images(store)


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


def pairs_file(path: Path, first: str, second: str) -> str:
    path.write_text(f"1\t1\n{first}\t1\t2\n{first}\t1\t{second}\t1\n")
    return path.name


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        (["a.txt", "b.txt"], [{"A1", "A2"}, {"B1"}]),
        (["a.txt", "none"], [{"A1", "A2"}, {"B1", "B2", "B3"}]),
        (["none", "b.txt"], [{"A1", "A2", "A3"}, {"B1"}]),
        ([], [{"A1", "A2", "A3"}, {"B1", "B2", "B3"}]),
        (["both.txt"], [{"A3"}, {"B3"}]),
    ],
)
def test_each_set_has_its_own_pairs(people: People, tmp_path: Path, pairs: list[str], named: list[set[str]]) -> None:
    for name in ("A1", "A2", "A3", "B1", "B2", "B3"):
        people.add(tmp_path / name[0] / name / f"{name}_0001.png", axis(0))
    pairs_file(tmp_path / "a.txt", "A1", "A2")
    pairs_file(tmp_path / "b.txt", "B1", "absent")
    pairs_file(tmp_path / "both.txt", "A3", "B3")
    sets = read_verification_sets(["A", "B"], pairs, jobs=1)
    assert [set(one.people) for one in sets] == named
    for one in sets:
        assert {one.store.identities[label] for label in one.store.labels[one.rows]} == set(one.people)


@pytest.mark.parametrize(
    ("against", "pairs", "message"),
    [
        (["A", "B"], ["a.txt"], r"B \(option against\) has none of the people in a\.txt \(with several sets, --pairs"),
        (["A", "B", "A"], ["a.txt", "none"], r"2 pairs files for 3 set\(s\)"),
        (["A", "names.txt"], ["a.txt", "a.txt"], r"names\.txt is not a folder of people\. Write none"),
        (["A"], ["absent.txt"], r"absent\.txt \(option pairs\)"),
    ],
)
def test_pairs_that_do_not_fit(
    people: People, tmp_path: Path, against: list[str], pairs: list[str], message: str
) -> None:
    for name in ("A1", "A2", "B1"):
        people.add(tmp_path / name[0] / name / f"{name}_0001.png", axis(0))
    pairs_file(tmp_path / "a.txt", "A1", "A2")
    (tmp_path / "names.txt").write_text("A1\n")
    with pytest.raises(FacelitError, match=message):
        read_verification_sets(against, pairs, jobs=1)


def test_images_named_in_a_list_are_left_out(people: People, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "c"):
        for number in range(3):
            people.add(tmp_path / "data" / name / f"{number}.png", axis(0))
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeff# a comment\na/1.png\tfar\r\nb/0.png\nb\\1.png\n.\\b\\2.png\nc/9.png\n".encode())
    with caplog.at_level("INFO"):
        folder = IdentityFolder("data", exclude_images=str(listed))
    assert "leaves out 4 of 9 images; 1 of its 5 names match no image (c/9.png)." in caplog.text
    assert folder.identities == ["a", "c"]
    assert [str(Path(folder.name(index)).relative_to("data")) for index in range(len(folder))] == [
        "a/0.png",
        "a/2.png",
        "c/0.png",
        "c/1.png",
        "c/2.png",
    ]
    assert folder.labels.tolist() == [0, 0, 1, 1, 1]
    assert IdentityFolder("data", 3, exclude_images=_list(listed, "a/1.png")).identities == ["b", "c"]
    for text, message in (
        ("nobody/1.png", r"none of its 1 lines \(such as 'nobody/1.png'\) names"),
        ("# only", "is empty"),
    ):
        with pytest.raises(FacelitError, match=message):
            IdentityFolder("data", exclude_images=_list(listed, text))
    with pytest.raises(FacelitError, match=r"1 of 3 identities are left by .*exclude_images="):
        IdentityFolder("data", 3, exclude_images=_list(listed, "a/1.png\nb/1.png"))


def test_a_resumed_epoch_notices_another_list_of_images(people: People, tmp_path: Path) -> None:
    from facelit.data.resuming import fingerprint

    for name in ("a", "b"):
        for number in range(3):
            people.add(tmp_path / "data" / name / f"{number}.png", axis(0))
    seen = {
        fingerprint(IdentityFolder("data", exclude_images=_list(tmp_path / "list.txt", name)))
        for name in ("a/0.png", "a/1.png", "a/0.png")
    }
    assert len(seen) == 2


def _list(path: Path, text: str) -> str:
    path.write_text(text + "\n")
    return str(path)


def test_identities_of_two_folders_from_check_to_training(
    people: People, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from facelit.tools.pack import pack

    for number, name in enumerate(("F1/MID1", "F1/MID2", "F2/MID1")):
        for image in range(2):
            people.add(tmp_path / "fiw" / name / f"{image}.png", axis(number, 20 + image, 0.9))
    people.add(tmp_path / "lfw" / "Someone" / "Someone_0001.png", axis(1))
    (tmp_path / "fiw" / "F1" / "relations.csv").write_text("x")
    (tmp_path / "fiw" / "F3").mkdir()
    with pytest.raises(FacelitError, match=r"Did you mean fiw/F1 or fiw/F2\?.*--identity_depth 2"):
        check("fiw")
    assert check("fiw", against="lfw", checkpoint="x.ckpt", identity_depth=2) == 0
    report = json.loads(Path("check-fiw.json").read_text())
    assert (report["data"]["images"], report["data"]["identities"]) == (6, 3)
    found = {finding["key"]: finding["items"] for finding in report["findings"]}
    assert found["ignored"] == [{"identity": "F3", "images": 0}, {"file": "F1/relations.csv"}]
    assert [item["identity"] for item in found["in_verification_by_face"]] == ["F1/MID2"]
    excluded = "check-fiw-exclude-identities.txt"
    folder = IdentityFolder("fiw", exclude_identities=excluded, identity_depth=2)
    assert folder.identities == ["F1/MID1", "F2/MID1"]
    assert pack("fiw", "packed", identity_depth=2, jobs=1) == 0
    assert pack("fiw", "packed", verify=True, identity_depth=2, jobs=1) == 0
    packed = IdentityFolder("packed", exclude_identities=excluded, exclude_images=_list(Path("l.txt"), "F2/MID1/0.png"))
    assert packed.identities == ["F1/MID1", "F2/MID1"]
    assert packed.labels.tolist() == [0, 0, 1]
    assert "no difference" in capsys.readouterr().out


def test_nothing_of_the_table_is_cut_in_a_log(
    people: People, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a_rather_long_name_of_a_person_" * 4
    people.add(tmp_path / "data" / name / "the_only_image_there_is.png", axis(0))
    people.add(tmp_path / "data" / "b" / "0.png", axis(1))
    check("data")
    assert f"{name}: 1 image\n" in capsys.readouterr().out.replace(" \n", "\n") + "\n"
