"""`torch.export`: the reloaded program against torch, without facelit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from facelit.export import export_model


@pytest.fixture(scope="module")
def path(model, crops, tmp_path_factory):
    return export_model(model, tmp_path_factory.mktemp("pt2") / "face.pt2", crops[:3], layout="NHWC").path


def test_the_program_equals_torch_at_any_batch_size(path, crops, expected) -> None:
    program = torch.export.load(path).module()
    for size in (1, 2, 64, 100):
        with torch.no_grad():
            found = program(torch.from_numpy(crops[:size]))
        np.testing.assert_allclose(found.numpy(), expected[:size], atol=1e-4)


def test_metadata_come_as_torch_s_extra_file(path) -> None:
    extra = {"facelit.json": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["facelit.json"])["layout"] == "NHWC"


def test_no_path_of_this_machine_is_in_the_file(path) -> None:
    here = str(Path(__file__).resolve().parents[2]).encode()
    with zipfile.ZipFile(path) as archive:
        assert all(here not in archive.read(name) for name in archive.namelist())


def test_floats_in_0_to_255(model, crops, expected, tmp_path) -> None:
    path = export_model(model, tmp_path / "float.pt2", crops[:3], dtype="float32").path
    images = torch.from_numpy(crops[:4].transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        np.testing.assert_allclose(torch.export.load(path).module()(images).numpy(), expected[:4], atol=1e-4)
