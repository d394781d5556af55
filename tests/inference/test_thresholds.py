"""Which threshold decides, and the words for it."""

from typing import Any

import pytest

from facelit.errors import FacelitError
from facelit.inference.thresholds import choose_threshold, percent
from trained_run import calibration

KEPT = {**calibration(best_accuracy=0.4, far_1e2=0.5), "second": calibration(far_1e3=0.6)["made_up"]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, "best_accuracy", None), (0.4, "best_accuracy", "made_up")),
        ((None, "far_1e-2", "made_up"), (0.5, "far_1e-2", "made_up")),
        ((None, "far_1e-3", "second"), (0.6, "far_1e-3", "second")),
        ((0.9, "best_accuracy", None), (0.9, None, None)),
        ((0.9, "no such", "no such"), (0.9, None, None)),
    ],
)
def test_the_users_own_wins(arguments: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    found = choose_threshold(KEPT, *arguments, "x.ckpt")
    assert (found.value, found.at, found.measured_on) == expected
    assert found.far == (None if expected[1] is None else 0.25)


@pytest.mark.parametrize(
    ("kept", "arguments", "message"),
    [
        (
            {},
            (None, "best_accuracy", None),
            r"x\.ckpt holds no thresholds.*--threshold.*--verification\.calibrate true",
        ),
        (
            KEPT,
            (None, "far_1e-3", None),
            r"no threshold far_1e-3 for made_up.*6,000 pairs are too few.*best_accuracy, far_1e-2",
        ),
        (KEPT, (None, "best_accuracy", "second"), "no threshold best_accuracy for second"),
        (KEPT, (None, "far_1e-9", None), r"no threshold far_1e-9 for made_up \(option at\)\. It has"),
        (
            KEPT,
            (None, "best_accuracy", "third"),
            r"no thresholds measured on third \(option on\)\. It has them for: made_up, second",
        ),
        (KEPT, (1.5, "best_accuracy", None), "between -1 and 1"),
        (KEPT, (float("nan"), "best_accuracy", None), "between -1 and 1"),
    ],
)
def test_what_is_not_there_is_named(kept: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(FacelitError, match=message):
        choose_threshold(kept, *arguments, "x.ckpt")


def test_the_explanation_says_what_it_stands_for() -> None:
    assert choose_threshold(KEPT, None, "far_1e-2", None, "").explanation() == (
        "the threshold for FAR <= 1e-2 on made_up, where it accepts 25 % of impostor pairs (FAR) and 75 % of genuine ones"
        " (TAR), 6,000 pairs"
    )
    assert choose_threshold({}, 0.3, "best_accuracy", None, "").explanation() == "the threshold set by the user"


@pytest.mark.parametrize(("share", "text"), [(0.0121, "1.21 %"), (1.0, "100 %"), (0.0, "0 %"), (1 / 3000, "0.0333 %")])
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text
