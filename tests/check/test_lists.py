"""The lists that `check` writes, and training reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from facelit.data.identity_folder import IdentityFolder
from facelit.errors import FacelitError
from facelit.tools.check import check
from numbered_people import People, axis


def test_images_named_in_a_list_are_left_out(people: People, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "c"):
        for number in range(3):
            people.add(tmp_path / "data" / name / f"{number}.png", axis(0))
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeff# a comment\na/1.png\tfar\r\nb/0.png\nb\\1.png\n.\\b\\2.png\nc/9.png\n".encode())
    with caplog.at_level("INFO"):
        folder = IdentityFolder("data", exclude_images=str(listed))
    assert (
        "leaves out 4 of 9 images; 1 of its 5 names match no image (c/9.png), 2 match in another spelling ("
        in caplog.text
    )
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
        ("nobody/1.png", r"no line of 1 \(such as 'nobody/1.png'\) names"),
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


def _list(path: Path, text: str) -> str:
    path.write_text(text + "\n")
    return str(path)
