"""Configuration files from anybody: one line, at once."""

from pathlib import Path

import pytest

from facelit import FacelitError
from facelit.cli.front import main
from facelit.cli.plain_yaml import check_config_file

LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))])
HOSTILE = {
    "multiplies": (LAUGHS, r"line \d+: stands for more than 100,000 values"),
    "recurses": ("a: &a {b: *a}\n", r"line 1: \*a stands for what it lies in"),
    "deep": ("a: " + "[" * 1000 + "]" * 1000, "line 1: not a YAML file|nested more than 50 deep"),
    "deep_blocks": ("\n".join(" " * i + "a:" for i in range(1000)), "nested more than 50 deep"),
    "binary": (bytes(range(256)), "not text in UTF-8"),
    "zeros": (b"\0" * 100, r"not a YAML file \(control characters are not allowed\)|not a YAML file"),
    "empty": (b"# nothing yet\n", "no configuration, but empty"),
    "list": (b"- a\n", "no configuration, but a list"),
    "twice": (
        b"trainer:\n  max_epochs: 3\nmodel: {}\ntrainer: {}\n",
        "line 4: `trainer` is there twice, first in line 1",
    ),
    "twice_inside": (b"a: {b: 1, b: 2}\n", "line 1: `b` is there twice"),
    "nameless": (b"a:\n  ? \n  : 3\n", "line 2: an option without a name"),
    "digits": (b"a: [" + b"9" * 5000 + b"]\n", "line 1: a number of 5,000 digits"),
    "large": (b"#" * 10_000_001, "10,000,001 bytes are too many"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("command", ["fit", "check"])
def test_hostile_files_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, command: str
) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "hostile.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FacelitError, match=message):
        check_config_file(path)
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", str(path)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"facelit: error: {path}")
    assert len(error.splitlines()) == 1


def test_a_device_is_no_configuration() -> None:
    """It would be read without end."""
    with pytest.raises(FacelitError, match="/dev/zero: a pipe or a device"):
        check_config_file(Path("/dev/zero"))


def test_anchors_are_fine(tmp_path: Path) -> None:
    """One that stands for little, inside another, and more than once."""
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {b: 1}\nc: &c {<<: *a, d: *a}\ne: [*c, *c, &d 3, *d]\n")
    check_config_file(path)
    check_config_file(tmp_path / "absent.yaml")
