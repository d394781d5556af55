"""Identity folders, lists of people, pairs files, single crops: what is read, and what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.data.identity_folder import IdentityFolder
from facelit.data.pairs import PairsFolder, read_pairs
from facelit.errors import FacelitError
from facelit.storage.images import list_images, read_crop
from facelit.storage.people import read_people
from tiny_run import write_crops, write_pairs


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crops(tmp_path_factory.mktemp("data") / "crops")


def test_labels_follow_sorted_names(tmp_path: Path) -> None:
    """Suffixes in any case count; hidden files, other files and empty folders do not."""
    for name in ("b/1.JPG", "b/2.png", "a/x.webp", "a/._x.webp", "a/notes.txt", "c/.keep", ".cache/1.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png", ".webp") and not path.name.startswith("._"):
            Image.new("RGB", (112, 112), (200, 10, 10)).save(path)
        else:
            path.write_bytes(b"no image")
    folder = IdentityFolder(tmp_path)
    assert folder.identities == ["a", "b"]
    assert folder.labels.tolist() == [0, 1, 1]
    assert [Path(folder.name(index)).name for index in range(3)] == ["x.webp", "1.JPG", "2.png"]
    assert folder.image(2).shape == (112, 112, 3)
    assert folder.image(2)[0, 0].tolist() == [200, 10, 10]


def test_limits(crops: Path, tmp_path: Path) -> None:
    names = tmp_path / "people.txt"
    names.write_text("person_00\nperson_03\n")
    assert IdentityFolder(crops, exclude_identities=str(names)).identities == [
        f"person_0{i}" for i in (1, 2, 4, 5, 6, 7)
    ]
    names.write_text("2\n2\nperson_00\t1\nperson_01\t2\n1\nperson_02\t5\n")
    assert "person_02" in IdentityFolder(crops, exclude_identities=str(names), exclude_folds=[1]).identities
    assert len(IdentityFolder(crops, exclude_identities=str(names), exclude_folds=[1]).identities) == 6
    assert len(IdentityFolder(crops, exclude_identities=str(names)).identities) == 5
    with pytest.raises(FacelitError, match="min_images_per_identity=7"):
        IdentityFolder(crops, min_images_per_identity=7)
    with pytest.raises(FacelitError, match="not fold 3"):
        IdentityFolder(crops, exclude_identities=str(names), exclude_folds=[3])


def test_grey_palette_and_alpha_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new("RGB", (112, 112), (90, 90, 90)).convert(mode).save(tmp_path / f"{mode}.{suffix}")
        crop = read_crop(tmp_path / f"{mode}.{suffix}")
        assert crop.shape == (112, 112, 3)
        assert crop.dtype == np.uint8
        assert abs(int(crop[50, 50, 1]) - 90) <= (16 if mode == "P" else 2)  # the palette has no closer grey


def test_other_sizes_are_resized_only_on_request(tmp_path: Path) -> None:
    Image.new("RGB", (96, 128)).save(tmp_path / "wide.png")
    with pytest.raises(FacelitError, match=r"wide\.png.*96x128.*resize: true"):
        read_crop(tmp_path / "wide.png")
    assert read_crop(tmp_path / "wide.png", resize=True).shape == (112, 112, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "truncated"])
def test_broken_images_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.jpg"
    if content is None:
        noise = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(FacelitError, match=r"broken\.jpg: cannot read this image"):
        read_crop(path)


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with pytest.raises(FacelitError, match=r"bomb\.png"):
        read_crop(path, resize=True)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", ["\t", " "])
def test_pairs_file(tmp_path: Path, newline: str, separator: str) -> None:
    rows = ["2\t1", "A\t1\t2", "A\t1\tB\t3", "B\t3\t4", "C\t1\tA\t2"]
    path = tmp_path / "pairs.txt"
    path.write_bytes(newline.join(row.replace("\t", separator) for row in rows).encode())
    pairs = read_pairs(path)
    assert [(pair.first, pair.second, pair.is_same, pair.fold) for pair in pairs] == [
        (("A", 1), ("A", 2), True, 1),
        (("A", 1), ("B", 3), False, 1),
        (("B", 3), ("B", 4), True, 2),
        (("C", 1), ("A", 2), False, 2),
    ]
    assert [pair.fold for pair in read_pairs(path, folds=[2])] == [2, 2]


def test_codes_are_people_of_their_own(tmp_path: Path) -> None:
    """Names that differ in case or at an end are one person's, unless they are codes."""
    path = tmp_path / "pairs.txt"
    path.write_text("1\t2\n7\t1\t2\n8\t1\t2\nm.0b4x2_\t1\tm.0b4x2\t1\naB3\t1\tAb3\t1\n")
    assert [pair.second[0] for pair in read_pairs(path)] == ["7", "8", "m.0b4x2", "Ab3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("hello\n", "line 1"),
        ("name,imagenum1,imagenum2,\nA,1,2,\n", "line 1.*genuine pairs `name i j`.*tabs.*CSV"),
        ("A_0001.jpg 1\nA_0002.jpg 1\n", "line 1.*CPLFW"),
        ("1\t1\nA\t1\t1\nA\t1\tB\t2\n", r"line 2.*'A\\t1\\t1' is one image twice"),
        ("1\t1\nA B\t1\t2\nA B\t1\ta_b\t2\n", "line 3.*is of one person"),
        ("1\t1\n7\t1\t2\n7\t1\t7\t2\n", "line 3.*is of one person"),
        ("1\t1\nA\t1\t2\nA\t1\tB\n", "line 3.*impostor"),
        ("1\t1\nA\t1\tx\nA\t1\tB\t2\n", "line 2.*genuine"),
        ("1\t1\nA\t1\t2\n", "promises 2 pairs, the file has 1"),
        ("1\t1\nA\t1\t2\nA\t1\tB\t2\nA\t1\tB\t2\n", "line 4: more rows"),
    ],
)
def test_malformed_pairs_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(FacelitError, match=message):
        read_pairs(path)


def test_pairs_folder_numbers_distinct_images(crops: Path, tmp_path: Path) -> None:
    folder = PairsFolder(crops, write_pairs(tmp_path / "pairs.txt"))
    assert len(folder) == len(set(folder.names)) == 32
    for pair, listed in enumerate(read_pairs(tmp_path / "pairs.txt")):
        assert folder.names[folder.first[pair]].endswith(f"{listed.first[0]}_{listed.first[1]:04d}.png")
        assert folder.names[folder.second[pair]].endswith(f"{listed.second[0]}_{listed.second[1]:04d}.png")
    assert folder.is_same.sum() == 8
    np.testing.assert_array_equal(folder.image(3), read_crop(folder.names[3]))


def test_missing_images_stop_unless_allowed(tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops")
    pairs = write_pairs(tmp_path / "pairs.txt")
    (crops / "person_02" / "person_02_0003.png").unlink()
    with pytest.raises(FacelitError, match=r"1 of its 32 images are absent.*person_02_0003.*allow_missing"):
        PairsFolder(crops, pairs)
    folder = PairsFolder(crops, pairs, allow_missing=True)
    assert folder.num_missing_pairs == 1
    assert len(folder.is_same) == 15


@pytest.mark.lfw
def test_lfw_as_published(lfw: Path) -> None:
    """6,000 pairs of 7,701 distinct images; people.txt's ten folds hold 5,749 people."""
    folder = PairsFolder(lfw / "aligned_112", lfw / "pairs.txt")
    assert len(folder) == 7701
    assert folder.is_same.reshape(10, 600).sum(axis=1).tolist() == [300] * 10
    assert len(read_people(lfw / "lists" / "people.txt")) == 5749
    by_fold = [read_people(lfw / "lists" / "people.txt", [fold]) for fold in range(1, 11)]
    assert sum(map(len, by_fold)) == 5749
    view_1 = read_pairs(lfw / "lists" / "pairsDevTest.txt")
    assert len(view_1) == 1000


@pytest.mark.parametrize("limits", [{}, {"min_images_per_identity": 6}], ids=["whole", "part"])
def test_a_pickled_folder_is_the_same(tmp_path: Path, limits: dict[str, int]) -> None:
    """What a worker that is not forked gets: a whole folder goes as its path."""
    crops = write_crops(tmp_path / "crops")
    (crops / "person_01" / "person_01_0001.png").unlink()
    folder = IdentityFolder(crops, **limits)
    data = pickle.dumps(folder)
    again = pickle.loads(data)
    assert list(again.identities) == list(folder.identities)
    np.testing.assert_array_equal(again.labels, folder.labels)
    assert [again.name(index) for index in range(len(again))] == [folder.name(index) for index in range(len(folder))]
    assert limits or len(data) < 500


def test_images_below_hidden_folders_are_not_listed(tmp_path: Path) -> None:
    """`facelit align` keeps its contact sheet in one."""
    crops = write_crops(tmp_path / "crops", num_identities=1, images_each=2)
    (crops / ".facelit-align").mkdir()
    Image.new("RGB", (10, 10)).save(crops / ".facelit-align" / "sheet.png")
    assert [path.name for path in list_images(crops)] == ["person_00_0001.png", "person_00_0002.png"]
