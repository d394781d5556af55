"""Parameter groups: which parameters get weight decay."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def parameter_groups(parameters: Iterable[Tensor], decay_norms_and_biases: bool) -> list[Tensor] | list[dict[str, Any]]:
    """Groups parameters for an optimizer, with or without weight decay for biases, norm weights and PReLU slopes.

    These are exactly the parameters with fewer than two dimensions: He et al., Bag of Tricks for Image Classification,
    CVPR 2019, sec. 3.1 ("no bias decay").

    Args:
        parameters: The parameters of the network and its head; those that require no gradient are omitted.
        decay_norms_and_biases: Whether all parameters get the optimizer's weight decay.

    Returns:
        All of them, or one group with the optimizer's weight decay and one without, omitting an empty group.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if decay_norms_and_biases:
        return wanted
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in wanted if parameter.ndim >= 2]},
        {"params": [parameter for parameter in wanted if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
