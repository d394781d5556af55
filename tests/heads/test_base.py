"""What a head need not write itself."""

import pytest
import torch
from torch import Tensor

from facelit.heads import Head, HeadOutput


class NormHead(Head):
    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        return HeadOutput(embeddings.square().mean(), {})


def test_defaults() -> None:
    head = NormHead()
    loss, metrics = head(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))
    assert (loss.item(), metrics) == (1.0, {})
    assert head.num_identities is None
    assert head.make_optimizer() is None
    assert head.diagnose({}) is None


def test_a_head_must_have_a_forward() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Head()  # type: ignore[abstract]
