"""IJB's files: what is read, in whatever order and line ends, and what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from facelit.data.ijb import TemplateSet, read_ijb
from facelit.errors import FacelitError
from ijb_layout import Layout, make_layout


def same(one: TemplateSet, other: TemplateSet) -> bool:
    """Everything but the order of pairs."""
    arrays = [
        np.array_equal(a, b)
        for a, b in (
            (one.landmarks, other.landmarks),
            (one.scores, other.scores),
            (one.template_ids, other.template_ids),
            *zip(one.rows, other.rows, strict=True),
            *((one.galleries[name][0], other.galleries[name][0]) for name in one.galleries),
            *((one.galleries[name][1], other.galleries[name][1]) for name in one.galleries),
            *zip(one.probes or (), other.probes or (), strict=True),
        )
    ]
    pairs = [Counter(zip(*(c.tolist() for c in found.pairs or ()), strict=True)) for found in (one, other)]
    names = [[path.name for path in found.paths] for found in (one, other)]
    return all(arrays) and pairs[0] == pairs[1] and names[0] == names[1] and one.digest == other.digest


def test_everything_is_read(tmp_path: Path) -> None:
    layout = make_layout()
    layout.points["99.png"] = layout.points["1.png"]  # of no template: not embedded
    layout.scores["99.png"] = 0.5
    found = read_ijb(layout.write(tmp_path))
    assert found.name == "IJB-C"
    assert [path.relative_to(tmp_path).as_posix() for path in found.paths] == [
        f"loose_crop/{n}.png" for n in range(1, 49)
    ]
    ids = found.template_ids.tolist()
    rows = [
        (found.paths[image].name, ids[template], medium)
        for template, medium, image in zip(*(column.tolist() for column in found.rows), strict=True)
    ]
    assert sorted(rows) == sorted(layout.media)
    assert found.landmarks[9].tolist() == np.array(layout.points["10.png"], np.float32).tolist()
    assert found.scores.tolist() == [np.float32(layout.scores[path.name]) for path in found.paths]
    assert found.pairs is not None
    pairs = [(ids[a], ids[b], int(label)) for a, b, label in zip(*found.pairs, strict=True)]
    assert pairs == layout.pairs
    for name, gallery in found.galleries.items():
        assert [(ids[t], s) for t, s in zip(*gallery, strict=True)] == layout.galleries[name]
    assert found.probes is not None
    assert [(ids[t], s) for t, s in zip(*found.probes, strict=True)] == layout.probes


def test_order_line_ends_and_byte_order_marks_change_nothing(tmp_path: Path) -> None:
    layout = make_layout()
    expected = read_ijb(layout.write(tmp_path / "one"))
    other = layout.write(tmp_path / "other" / "IJBB", "ijbb", shuffle=5, end="\r\n")
    for name in ("G1", "G2"):  # as IJB-B calls them
        (other / f"meta/ijbb_1N_gallery_{name}.csv").rename(
            other / f"meta/ijbb_1N_gallery_{name.replace('G', 'S')}.csv"
        )
    for path in (other / "meta").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n")
    found = read_ijb(tmp_path / "other")
    assert (found.name, list(found.galleries)) == ("IJB-B", ["S1", "S2"])
    found.galleries.update(G1=found.galleries.pop("S1"), G2=found.galleries.pop("S2"))
    assert same(found, expected)


def test_columns_are_found_by_name_and_a_first_line_of_numbers_is_a_template(tmp_path: Path) -> None:
    folder = make_layout().write(tmp_path)
    expected = read_ijb(folder)
    path = folder / "meta/ijbc_1N_gallery_G1.csv"
    path.write_text("SUBJECT_ID,FILENAME,TEMPLATE_ID\n0,a.jpg,100\n1,a.jpg,101\n2,a.jpg,102\n")
    assert same(read_ijb(folder), expected)
    path.write_text("100,0\n101,1\n102,2\n")
    assert same(read_ijb(folder), expected)


def test_one_part_does_without_the_others_files(tmp_path: Path) -> None:
    folder = make_layout().write(tmp_path)
    (folder / "meta/ijbc_1N_gallery_G2.csv").unlink()
    with pytest.raises(
        FacelitError, match=r"ijbc_1N_gallery_G2.csv missing. Without: --only 1:1. Expected: .*loose_crop/1.jpg"
    ):
        read_ijb(folder)
    assert read_ijb(folder, only="1:1").probes is None
    (folder / "meta/ijbc_template_pair_label.txt").unlink()
    with pytest.raises(FacelitError, match=r"ijbc_template_pair_label.txt missing. Expected"):
        read_ijb(folder, only="1:1")
    make_layout().write(tmp_path)
    (folder / "meta/ijbc_template_pair_label.txt").unlink()
    with pytest.raises(FacelitError, match="Without: --only 1:N"):
        read_ijb(folder)
    assert read_ijb(folder, only="1:N").pairs is None


def test_folders_that_are_not_ijbs_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        FacelitError, match=r"nowhere. Expected: .*meta, ijbc_face_tid_mid.txt, .*ijbc_1N_probe_mixed.csv"
    ):
        read_ijb(tmp_path / "nowhere")
    with pytest.raises(FacelitError, match="no meta files of IJBB or IJBC here"):
        read_ijb(tmp_path)
    for name in ("IJBB", "IJBC"):
        make_layout().write(tmp_path / name, name.lower())
    with pytest.raises(FacelitError, match=r"holds IJBB and IJBC. Choose one: --protocol IJBB"):
        read_ijb(tmp_path)
    assert read_ijb(tmp_path, "IJBB").name == "IJB-B"
    (tmp_path / "IJBC/loose_crop").rmdir()
    with pytest.raises(FacelitError, match=r"folder not found: .*loose_crop"):
        read_ijb(tmp_path, "IJBC")


FACE = "1.png 1 2 3 4 5 6 7 8 9 11"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("name_5pts_score.txt", FACE, "line 1: expected `1.jpg x1 y1"),
        ("name_5pts_score.txt", f"{FACE} 0.5 0.5", "line 1: expected `1.jpg x1 y1"),
        ("name_5pts_score.txt", f"{FACE.replace('11', 'x')} 0.5", "line 1: expected `1.jpg x1 y1"),
        (
            "name_5pts_score.txt",
            f"{FACE.replace('11', 'nan')} 0.5",
            "line 1: the point of 1.png is not a finite number",
        ),
        ("name_5pts_score.txt", f"{FACE} nan", "line 1: the score of 1.png is not a finite number"),
        ("name_5pts_score.txt", f"{FACE} -1", "line 1: the score of 1.png is -1"),
        ("name_5pts_score.txt", f"../{FACE} 0.5", r"\.\./1.png leads out of the folder"),
        ("name_5pts_score.txt", f"2{FACE} 0.5", r"line \d+: 21.png has other points in an earlier line"),
        ("face_tid_mid.txt", "1.png 100", "line 1: expected `1.jpg 1 69544`"),
        ("face_tid_mid.txt", "1.png x 7", "line 1: expected `1.jpg 1 69544`"),
        ("face_tid_mid.txt", "77.png 100 7", r"no line in ijbc_name_5pts_score.txt for 1 of its images \(77.png\)"),
        ("template_pair_label.txt", "100 1000", "line 1: expected `1 11065 1`"),
        ("template_pair_label.txt", "100 1000 yes", "line 1: expected `1 11065 1`"),
        ("template_pair_label.txt", "100 1000 2", "line 1: the label is 2; it must be 1"),
        (
            "template_pair_label.txt",
            "100 9 1",
            r"no image in \*_face_tid_mid.txt for 1 of its templates \(9\)",
        ),
        ("1N_gallery_G1.csv", "1000,0", r"gallery_G1.csv: subjects with several templates: 1 \(subject 0: 100, 1000\)"),
        ("1N_gallery_G1.csv", "9,77", r"gallery_G1.csv: no image .* for 1 of its templates \(9\)"),
        ("1N_gallery_G1.csv", "100", "line 1: expected `TEMPLATE_ID,SUBJECT_ID,FILENAME`"),
        ("1N_probe_mixed.csv", "1000,5", "line 2: template 1000 is of subject 0, but of 5 before"),
        ("1N_probe_mixed.csv", '1000,5,"a', "1N_probe_mixed.csv"),
    ],
)
def test_a_wrong_first_line_is_said_in_one(tmp_path: Path, file: str, text: str, message: str) -> None:
    """In place of a heading, or before what stands in the first line."""
    folder = make_layout().write(tmp_path)
    path = folder / f"meta/ijbc_{file}"
    lines = path.read_text().splitlines()
    if file.endswith("csv"):
        lines = lines[1:]  # numbers in the first line are not a heading
    path.write_text("\n".join([text, *lines]) + "\n")
    with pytest.raises(FacelitError, match=message) as caught:
        read_ijb(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("template_pair_label.txt", "100 1000 1\n", "no impostor pairs here"),
        ("template_pair_label.txt", "100 1010 0\n", "no genuine pairs here"),
        ("template_pair_label.txt", "", "no pairs here"),
        ("template_pair_label.txt", "100 1000 1\n100 1010 0 1\n", "line 2: expected `1 11065 1`"),
        ("face_tid_mid.txt", "\n", "is empty"),
        ("name_5pts_score.txt", "", "is empty"),
        ("1N_probe_mixed.csv", "TEMPLATE_ID,SUBJECT_ID\n", "no templates here"),
    ],
)
def test_files_with_nothing_to_measure_are_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = make_layout().write(tmp_path)
    (folder / f"meta/ijbc_{file}").write_text(text)
    with pytest.raises(FacelitError, match=message):
        read_ijb(folder)


def test_pairs_that_are_no_text_are_refused(tmp_path: Path) -> None:
    folder = make_layout().write(tmp_path)
    (folder / "meta/ijbc_template_pair_label.txt").write_bytes(b"\xff\xfe1\x00 \x001\x00")
    with pytest.raises(FacelitError, match=r"template_pair_label.txt"):
        read_ijb(folder)


def test_a_large_list_of_pairs_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout: Layout = make_layout()
    folder = layout.write(tmp_path)
    expected = read_ijb(folder)
    monkeypatch.setattr("facelit.data.ijb._ROWS", 7)
    shown: list[int] = []

    class Shown:
        def __enter__(self) -> object:
            return shown.append

        def __exit__(self, *error: object) -> None:
            pass

    assert same(read_ijb(folder, progress=lambda text, total: Shown()), expected)  # type: ignore[arg-type,return-value]
    assert len(shown) == -(-len(layout.pairs) // 7)
