"""What `fit --model.head.help` lists, where a head hands `**options` on to its base; and what it does not take."""

import re
from typing import Any

import pytest

from facelit.cli.errors import _argument_names
from facelit.cli.lightning_cli import FacelitParser
from facelit.errors import FacelitError
from facelit.heads import Head

SIZES = {"num_identities", "embedding_dim"}
SHARED = {"label_smoothing", "sharded", "sample_rate"}
MARGIN = SIZES | SHARED | {"scale", "margin_ramp", "center"}
OPTIONS = {
    "ArcFaceHead": MARGIN | {"margin"},
    "CosFaceHead": MARGIN | {"margin"},
    "CombinedMarginHead": MARGIN | {"m1", "m2", "m3"},
    "AdaFaceHead": MARGIN | {"margin", "concentration", "momentum"},
    "SoftmaxHead": SIZES | SHARED | {"bias", "center"},
    "CenterLossHead": SIZES | SHARED | {"bias", "weight", "alpha", "normalized"},
}


def make_parser() -> FacelitParser:
    parser = FacelitParser(allow_abbrev=False)
    parser.add_subclass_arguments(Head, "model.head")
    return parser


def parse(*options: str) -> Any:
    return make_parser().parse_args([*options, "--model.head.num_identities=3", "--model.head.embedding_dim=2"])


@pytest.mark.parametrize("name", OPTIONS)
def test_help_lists_every_option_with_its_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args([f"--model.head.help={name}"])
    text = " ".join(capsys.readouterr().out.partition("Help for")[2].split())
    entries = re.findall(r"--model\.head\.(\w+) [{\w,}]+ (.*?)\((?:required, )?type:", text)
    assert {option for option, _ in entries} == OPTIONS[name]
    assert all(len(description) > 10 for _, description in entries if description != "m in the paper. ")


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_all_bases_arrive(name: str) -> None:
    head = make_parser().instantiate(parse(f"--model.head={name}", "--model.head.label_smoothing=0.25")).model.head
    assert type(head).__name__ == name
    assert head.label_smoothing == 0.25


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("ArcFaceHead", "margn", "Did you mean margin"),
        ("ArcFaceHead", "sample_rat", "Did you mean sample_rate"),
        ("CenterLossHead", "label_smothing", "Did you mean label_smoothing"),
        ("ArcFaceHead", "bias", "unknown option bias"),
        ("CenterLossHead", "center.weight", "unknown option"),
        ("ArcFaceHead", "options", "unknown option options"),
    ],
)
def test_an_unknown_option_is_an_error(name: str, option: str, message: str) -> None:
    with pytest.raises(FacelitError, match=message):
        parse(f"--model.head={name}", f"--model.head.{option}=0.3")


def test_options_is_never_a_suggestion() -> None:
    assert "options" not in set(_argument_names())
    assert {"label_smoothing", "margin_ramp", "margin"} <= set(_argument_names())
