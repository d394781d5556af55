"""The command line's front: training commands go to Lightning's command line, tools run at once, without torch."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from keyword import iskeyword
from typing import Any

from facelit.cli.program import program
from facelit.errors import FacelitError

TRAINING = {
    "fit": "train",
    "validate": "measure a checkpoint on the verification sets",
    "test": "the same as validate",
    "predict": "embed a folder of crops",
}
TOOLS = {
    "align": "find the faces in photos and crop them as training expects",
    "card": "write a model card: a checkpoint's data, measured accuracy, use and limits",
    "check": "find broken or duplicate images in a training set, or people in the verification set too",
    "cluster": "sort the faces in unlabelled photos by person",
    "embed": "turn a folder of photos into a file of embeddings",
    "evaluate": "measure a checkpoint on your own people, and recommend a threshold",
    "export": "write a checkpoint's network for other programs: ONNX, torch.export, safetensors",
    "identify": "say who in a gallery of people is in a photo",
    "ijb": "measure a checkpoint on IJB-B or IJB-C: pairs of templates, and searches",
    "import": "make a checkpoint from any face network: PyTorch weights or ONNX",
    "models": "list the published networks that import knows",
    "pack": "turn a training set into a few large files that load faster",
    "suites": "measure checkpoints on LFW, CFP, AgeDB-30, CALFW and CPLFW, side by side",
    "report": "show runs and checkpoints on one page: curves, a threshold to drag, hardest pairs",
    "verify": "say whether two photos show the same person",
}
_OVERVIEW = """usage: {program} COMMAND ...

Trains face-verification embeddings, and looks after the data for it.

{commands}

first steps:
  {program} fit --config configs/center.yaml --config configs/demo.yaml   built-in faces, three minutes, no downloads
  {program} fit --config configs/center.yaml --data.train.root FOLDER     your own data
  {program} COMMAND --help                                                every option of a command
"""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the program; a user error ends it with a short message and status 2.

    Args:
        args: Arguments to use instead of the command line's, for calls from Python.
    """
    _print_any_name()
    arguments = list(sys.argv[1:] if args is None else args)
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(overview(), end="")
        return
    try:
        if first in TOOLS:
            _leave(_run_tool(first, arguments[1:]))
            return
        if not first.startswith("-") and first not in TRAINING:
            raise FacelitError(_unknown_command(first))
    except FacelitError as error:
        from facelit.storage.text import one_line  # numpy: not for --help

        print(f"facelit: error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        hint = " The same command continues where it stopped." if _continues(arguments) else ""
        print(f"facelit: stopped.{hint}", file=sys.stderr)
        sys.exit(130)
    except (ImportError, MemoryError) as error:
        _end_without_memory(error)
        raise
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    # Else torch prints a page of C++ frames for every process of a run that loses another.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        # Only now: this import takes seconds.
        from facelit.callbacks import RunStopped
        from facelit.cli.processes import end_now, ignore_signals
        from facelit.cli.training import main as main_of_training
    except KeyboardInterrupt:
        print("facelit: stopped.", file=sys.stderr)
        sys.exit(130)
    except (ImportError, MemoryError) as error:
        _end_without_memory(error)
        raise
    try:
        main_of_training(arguments)
    except SystemExit as end:
        if args is None and isinstance(end.__context__, RunStopped):
            ignore_signals()
            end_now(end.__context__.code)
        raise
    if args is None:  # the run is finished; taking down the interpreter takes seconds
        ignore_signals()


def _end_without_memory(error: Exception) -> None:
    """Ends the program with one line where memory, or address space for a library, ran out; returns where it is another error."""
    # On ARM "cannot allocate memory in static TLS block" is about the order of imports.
    lacks_memory = "failed to map segment" in str(error) or "allocate memory" in str(error)
    if isinstance(error, MemoryError) or (lacks_memory and "static TLS" not in str(error)):
        what = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        print(
            f"facelit: error: out of memory ({what}). Where `ulimit -v` limits the address space, allow more: torch alone takes some 4 GB.",
            file=sys.stderr,
        )
        sys.exit(2)


def _print_any_name() -> None:
    """A console or pipe whose encoding lacks a person's letters (Windows' cp1252) gets escapes, where Python would end in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _continues(arguments: Sequence[str]) -> bool:
    """Whether an interrupted command goes on when it is given again."""
    return arguments[0] in ("align", "ijb", "pack") or (
        arguments[0] == "suites" and any(one.startswith("--out") for one in arguments)
    )


def _leave(status: int) -> None:
    sys.stdout.flush()
    if status:
        sys.exit(status)


def overview() -> str:
    """The text that `--help` alone prints."""
    rows = [f"  {name:<10}{text}" for name, text in (TRAINING | TOOLS).items()]
    return _OVERVIEW.format(program=program(), commands="\n".join(["commands:", *rows]))


def _run_tool(name: str, arguments: list[str]) -> int:
    """Parses a tool's arguments according to its function's signature, and calls it."""
    from facelit.cli.config_files import expand_paths
    from facelit.cli.parser import make_parser

    python_name = f"{name}_" if iskeyword(name) else name
    function = getattr(import_module(f"facelit.tools.{python_name}"), python_name)
    options: dict[str, Any] = make_parser(function, f"{program()} {name}").parse_args(arguments).as_dict()
    options.pop("config")
    expand_paths(options)
    return int(function(**options) or 0)


def _unknown_command(name: str) -> str:
    known = [*TRAINING, *TOOLS]
    close = get_close_matches(name, known, n=1)
    suggestion = f" Did you mean {close[0]}?" if close else ""
    return f"there is no command {name}.{suggestion} There are: {', '.join(known)}."
