"""A large batch on the CPU goes through a network in pieces, and comes out as it would whole."""

import torch
from torch import Tensor

from facelit.backbones import VGG16
from facelit.backbones.pieces import IMAGES_PER_THREAD, embed_in_pieces


def test_pieces_are_those_of_the_whole_batch_in_order() -> None:
    network = VGG16(width=0.01, embedding_dim=6, batch_norm=True).eval()
    size = 2 * IMAGES_PER_THREAD * torch.get_num_threads() + 3
    images = torch.rand(size, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen: list[int] = []

    def embed(part: Tensor) -> Tensor:
        seen.append(len(part))
        embeddings: Tensor = network(part)
        return embeddings

    with torch.inference_mode():
        assert torch.allclose(embed_in_pieces(embed, images), network(images), atol=1e-6)
    assert seen == [size // 2 - 1, size // 2 - 1, 3]


def test_a_batch_on_a_device_stays_whole() -> None:
    seen: list[int] = []

    def embed(part: Tensor) -> Tensor:
        seen.append(len(part))
        return part.flatten(1)

    assert embed_in_pieces(embed, torch.empty(1000, 3, 2, 2, device="meta")).shape == (1000, 12)
    assert seen == [1000]


def test_no_image_is_no_piece() -> None:
    assert embed_in_pieces(lambda part: part.flatten(1), torch.empty(0, 3, 2, 2)).shape == (0, 12)
