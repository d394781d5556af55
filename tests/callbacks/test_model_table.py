"""The table at the start of a run."""

from pathlib import Path

import pytest

from facelit.cli import main
from tiny_run import make_run


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], True),
        (["--trainer.enable_model_summary", "false"], False),
        (["--trainer.callbacks+", "ModelSummary"], False),
        (["--trainer.callbacks", "ModelSummary"], False),  # one alone
    ],
)
def test_parts_and_parameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], shown: bool
) -> None:
    """Of the tiny run: 8 centers and 8 softmax vectors of 16 numbers, with 8 biases; the centers are not trained parameters."""
    run = make_run(tmp_path, trainer__enable_model_summary=True, trainer__fast_dev_run=True)
    main(["fit", "--config", str(run), *options])
    out = capsys.readouterr().out
    assert ("Name" in out) == shown
    if shown:
        assert [name for name in ("TinyNet", "CenterLossHead", "264") if name not in out] == []
        assert "FLOPs" not in out
        assert "parameters" in out
