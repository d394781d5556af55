"""Channel counts, and sizes that make no network."""

import pytest

from facelit.backbones.channels import check_sizes, scale_channels


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(64, 1.0, 64), (64, 0.5, 32), (64, 0.01, 8), (512, 0.3, 152), (64, 1.5, 96), (64, 0.35, 24)],
)
def test_multiples_of_eight_by_hand(channels: int, width: float, expected: int) -> None:
    assert scale_channels(channels, width) == expected


def test_only_the_wrong_sizes_are_named() -> None:
    check_sizes(width=0.1, embedding_dim=1)
    with pytest.raises(ValueError, match=r"^width=0: must be positive"):
        check_sizes(width=0, embedding_dim=1)
    with pytest.raises(ValueError, match=r"width=nan and embedding_dim=-1"):
        check_sizes(width=float("nan"), embedding_dim=-1)
