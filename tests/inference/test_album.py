"""An album's folders, as far as `facelit cluster` on the command line does not show them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.inference.album import Album, digest_of


@pytest.mark.parametrize("copy", [False, True])
def test_a_photo_stays_in_noise_while_one_of_its_faces_is_nobodys(tmp_path: Path, copy: bool) -> None:
    photo, out = tmp_path / "both.png", tmp_path / "out"
    Image.new("RGB", (8, 8)).save(photo)
    album = Album(out, "")
    album.add([(digest_of(photo), photo, np.zeros((2, 112, 112, 3), np.uint8))], np.eye(2, 4, dtype=np.float32))
    album.place(copy)
    assert (out / "noise" / "both.png").exists()
    album.people = np.array([1, 0])
    album.place(copy)
    assert (out / "noise" / "both.png").exists()
    assert (out / "person_0001" / "both.png").exists()
    album.people = np.array([1, 2])
    album.place(copy)
    assert not (out / "noise" / "both.png").exists()
    assert (out / "person_0002" / "both.png").exists()


def test_a_photo_with_another_content_leaves_its_person(tmp_path: Path) -> None:
    """Its link showed somebody else among the person's photos."""
    album = Album(tmp_path / "out", "")
    for name, shade in (("a.png", 10), ("b.png", 200)):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / name)
        album.add(
            [(digest_of(tmp_path / name), tmp_path / name, np.zeros((1, 112, 112, 3), np.uint8))],
            np.full((1, 4), shade, np.float32),
        )
    album.people = np.array([1, 1])
    album.place(False)
    album.forget([0])
    assert not (tmp_path / "out" / "person_0001" / "a.png").is_symlink()
    assert (tmp_path / "out" / "person_0001" / "b.png").is_symlink()
    assert (tmp_path / "a.png").exists()
    assert (album.faces, album.placed, album.people.tolist()) == ([0], ["person_0001/b.png"], [1])
    assert album.embeddings.tolist() == [[200] * 4]
