"""Pictures of the answers hold the names of the user's files and people, whatever these are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from facelit.inference import Identification, Match, Threshold, Verdict
from facelit.inference.figures import identification_figure, save_png, verdict_figure

CROP = np.zeros((112, 112, 3), np.uint8)
NAMES = ["A$$P_0001.jpg", "$x^", "$1 and $2", "Jos\udce9.png"]


def drawn(figure: Figure) -> str:
    """All its text; drawing it fails where matplotlib cannot."""
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("name", NAMES)
def test_a_verdict_shows_any_name(name: str) -> None:
    details = Threshold(0.5, "best_accuracy", "$$set", 0.1, 0.9, 600, 3)
    verdict = Verdict(0.6, True, 0.5, 0.1, "$$set", details)
    texts = drawn(verdict_figure([CROP, CROP], [f"photos/{name}", "b.jpg"], verdict))
    assert shown(name) in texts
    assert "best accuracy on $$set" in texts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_examples", [True, False])
def test_an_identification_shows_any_name(name: str, with_examples: bool) -> None:
    details = Threshold(0.5, "best_accuracy", "$$set", 0.1, 0.9, 600, 3)
    answer = Identification(0, 0, name, [Match(name, 0.7), Match("other", 0.1)], details)
    examples = {name: CROP, "other": CROP} if with_examples else {}
    texts = drawn(identification_figure([CROP], [f"photos/{name}"], [answer], examples))
    assert texts.count(shown(name)) == 3  # the photo, who it is, the best match
    assert "best accuracy on $$set" in texts


def test_letters_that_the_font_lacks_are_no_reason_to_warn(recwarn: pytest.WarningsRecorder) -> None:
    details = Threshold(0.5, "best_accuracy", "set", 0.1, 0.9, 600, 3)
    verdict = Verdict(0.6, True, 0.5, 0.1, "set", details)
    save_png(verdict_figure([CROP, CROP], ["顔.jpg", "b.jpg"], verdict), io.BytesIO())
    assert [str(warning.message) for warning in recwarn] == []
