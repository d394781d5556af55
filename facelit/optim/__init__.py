"""Optimizers and schedules: the center update rule, learning rates over optimizer steps, parameter groups."""

from facelit.optim.center_sgd import CenterSGD, check_alpha, move_centers, record_batch
from facelit.optim.groups import parameter_groups
from facelit.optim.schedules import WarmupCosine, WarmupMultiStep, WarmupPolynomial, WarmupSchedule

__all__ = [
    "CenterSGD",
    "WarmupCosine",
    "WarmupMultiStep",
    "WarmupPolynomial",
    "WarmupSchedule",
    "check_alpha",
    "move_centers",
    "parameter_groups",
    "record_batch",
]
