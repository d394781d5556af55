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
