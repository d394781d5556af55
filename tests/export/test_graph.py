"""The exported graph in torch: what goes in, what comes out, with every option."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch

from facelit.data.augmentation import normalize
from facelit.export import EmbeddingGraph

OPTIONS = [
    (normalizes, l2, dtype, layout)
    for normalizes, l2, dtype, layout in product((True, False), (True, False), ("uint8", "float32"), ("NCHW", "NHWC"))
    if normalizes or dtype == "float32"
]


@pytest.mark.parametrize(("normalizes", "l2", "dtype", "layout"), OPTIONS)
def test_every_option_gives_the_same_directions(model, crops, expected, normalizes, l2, dtype, layout) -> None:
    """Input prepared by hand, from the description of the options."""
    images = crops[:6].astype(np.float32) if dtype == "float32" else crops[:6]
    if not normalizes:
        images = (images - 127.5) / 127.5
    if layout == "NCHW":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    graph = EmbeddingGraph(model.backbone, normalizes, l2, dtype, layout)
    with torch.no_grad():
        found = graph(torch.from_numpy(images)).numpy()
        prepared = graph.prepare(torch.from_numpy(crops[:6]))
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    assert found.dtype == np.float32
    if l2:
        np.testing.assert_allclose(lengths, 1, atol=1e-6)
    else:
        assert abs(lengths - 1).min() > 1e-3
    np.testing.assert_allclose(found / lengths, expected[:6], atol=1e-5)
    assert prepared.dtype == getattr(torch, dtype)
    assert prepared.is_contiguous()
    np.testing.assert_array_equal(prepared.numpy(), images)


def test_normalisation_is_the_training_s(crops) -> None:
    """To the last bit."""
    images = torch.from_numpy(crops[:3]).permute(0, 3, 1, 2)
    graph = EmbeddingGraph(torch.nn.Flatten(), l2=False)
    assert torch.equal(graph(images), normalize(images).flatten(1))


def test_a_network_left_in_training_mode_is_exported_in_eval_mode(model, crops, expected) -> None:
    """Dropout would draw, and batch normalisation would make an embedding depend on its neighbours."""
    graph = EmbeddingGraph(copy.deepcopy(model.backbone).train())
    with torch.no_grad():
        found = graph(graph.prepare(torch.from_numpy(crops[:5]))).numpy()
    np.testing.assert_allclose(found, expected[:5], atol=1e-5)


def test_bytes_cannot_be_in_minus_one_to_one(model) -> None:
    with pytest.raises(ValueError, match="uint8"):
        EmbeddingGraph(model.backbone, normalize=False)
