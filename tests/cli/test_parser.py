"""The front of the command line: help without torch, tools, and slips in either."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from facelit.cli import TOOLS, TRAINING, main
from facelit.cli.parser import make_parser
from facelit.errors import FacelitError
from tiny_run import ROOT, write_crops


def tool(
    src: str,
    dst: str | None = None,
    quick: bool = False,
    kind: Literal["a", "b"] = "a",
    jobs: int | None = None,
    more: str | list[str] | None = None,
) -> None:
    """Does something.

    At length.

    Args:
        src: Where from.
        dst: Where to.
        quick: Whether to hurry.
        kind: Which.
        jobs: How many.
        more: Further ones.
    """


tool.positional = ("dst",)
tool.examples = ["here there"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["x"], ("x", None, False, "a", None)),
        (["x", "y", "--quick", "--kind", "b", "--jobs", "3"], ("x", "y", True, "b", 3)),
        (["--jobs=2", "x"], ("x", None, False, "a", 2)),
        (["x", "--more", "p", "q"], ("x", None, False, "a", None, ["p", "q"])),
    ],
)
def test_arguments_follow_the_signature(arguments: list[str], expected: tuple[object, ...]) -> None:
    options = make_parser(tool, "facelit tool").parse_args(arguments)
    found = (options.src, options.dst, options.quick, options.kind, options.jobs, options.more)
    assert found == (*expected, None)[:6]


def test_a_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "tool.yaml").write_text("src: x\njobs: 4\n")
    options = make_parser(tool, "facelit tool").parse_args(["--config", str(tmp_path / "tool.yaml"), "--jobs", "5"])
    assert (options.src, options.jobs) == ("x", 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SRC is missing"),
        (["x", "y", "z"], "unknown option z"),
        (["x", "--quik"], "unknown option --quik. Did you mean --quick?"),
        (["x", "--jobs", "many"], r"--jobs many: not a valid value \(expected int\)"),
        (["x", "--kind", "c"], "kind"),
        (["x", "--more", "p", "--more=q"], "--more is given twice: name all after one, --more A B"),
    ],
)
def test_slips_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(FacelitError, match=message) as caught:
        make_parser(tool, "facelit tool").parse_args(arguments)
    assert "\n" not in str(caught.value)
    assert "`facelit tool --help`" in str(caught.value)


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        make_parser(tool, "facelit tool").parse_args(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for part in ("Does something.", "At length.", "Where from.", "Whether to hurry.", "facelit tool here there"):
        assert part in text


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_every_tool_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert "examples:" in capsys.readouterr().out


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in {**TRAINING, **TOOLS})
    main([])
    assert capsys.readouterr().out == text


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["pak"])
    assert left.value.code == 2
    assert "no command pak. Did you mean pack?" in capsys.readouterr().err


def test_tools_start_without_torch() -> None:
    """In one process, in which nothing else imports it."""
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from facelit.cli import main
for arguments in ["--help"], ["pack", "--help"], ["check", "--help"], ["pack", "nowhere", "x"]:
    try:
        main(arguments)
    except SystemExit:
        pass
    assert "torch" not in sys.modules, arguments
"""
    subprocess.run([sys.executable, "-c", program, str(ROOT)], check=True, capture_output=True)


def test_pack_and_verify_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crops, packed = write_crops(tmp_path / "crops"), tmp_path / "packed"
    main(["pack", str(crops), str(packed), "--jobs", "1"])
    assert f"--data.train.root {packed}" in capsys.readouterr().out
    main(["pack", str(crops), str(packed), "--verify", "--jobs", "1"])
    assert "no difference" in capsys.readouterr().out
    (crops / "person_00" / "person_00_0001.png").write_bytes(b"changed")
    with pytest.raises(SystemExit) as left:
        main(["pack", str(crops), str(packed), "--verify", "--jobs", "1"])
    assert left.value.code == 1
    assert "differs from" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["pack", str(crops), str(tmp_path / "other"), "--jobs", "1"])
    assert left.value.code == 2
    assert "person_00_0001.png" in capsys.readouterr().err


def test_names_that_the_console_cannot_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, or under PYTHONIOENCODING=ascii: the findings, not a traceback; and bytes that are not UTF-8."""
    write_crops(tmp_path / "crops", num_identities=2, images_each=2)
    for name in ("李小龙", "Bad\udce9"):
        (tmp_path / "crops" / name).mkdir()
        (tmp_path / "crops" / name / "0.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)  # where the report goes
    for encoding, shown in (("cp1252", b"\\u674e\\u5c0f"), ("utf-8", "李小龙".encode())):
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", output)
        with pytest.raises(SystemExit) as end:
            main(["check", "crops", "--jobs", "1"])
        assert end.value.code == 1
        output.flush()
        printed = output.buffer.getvalue()
        assert shown in printed
        assert b"Full report" in printed


def test_ctrl_c_while_torch_is_being_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Importing:
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "facelit.cli.training", Importing())
    with pytest.raises(SystemExit) as ended:
        main(["fit"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "facelit: stopped.\n"


@pytest.mark.parametrize(
    "error",
    [ImportError("libtorch.so: failed to map segment from shared object"), MemoryError("Unable to allocate 2 GiB")],
)
@pytest.mark.parametrize("command", ["fit", "pack"])
def test_no_room_for_torch_or_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, command: str
) -> None:
    """As under `ulimit -v`, which ended in a traceback; other errors stay what they are."""

    class Importing:
        def __getattr__(self, name: str) -> object:
            raise error

    monkeypatch.setitem(
        sys.modules, {"fit": "facelit.cli.training", "pack": "facelit.tools.pack"}[command], Importing()
    )
    with pytest.raises(SystemExit) as ended:
        main([command])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"facelit: error: out of memory ({error}). Where `ulimit -v`")
    for error in (
        ImportError("no such module"),
        ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),  # ARM, about the order of imports
    ):
        with pytest.raises(ImportError, match=str(error)):
            main([command])
