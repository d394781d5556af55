"""Parsers of the tools, made from their functions: arguments from the signature, help from the docstring."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser

from facelit.cli.config_files import PlainConfigFile
from facelit.errors import FacelitError


class ToolParser(ArgumentParser):
    """Says what is wrong in a line or two instead of a page of usage."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """As argparse does; but of an option for several words that is given twice, the first words are not lost in silence."""
        typed = [str(word).partition("=")[0] for word in (sys.argv[1:] if args is None else args)]
        for action in self._actions:
            flags = [word for word in typed if word in action.option_strings]
            if action.nargs == "+" and len(flags) > 1:
                self.error(f"{flags[0]} is given twice: name all after one, {flags[0]} A B.")
        return super().parse_args(args, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Ends the program with status 2."""
        raise FacelitError(f"{self._explain(message)} `{self.prog} --help` lists the options and shows examples.")

    def _explain(self, message: str) -> str:
        unknown = re.search(r"nrecognized arguments: (\S+)", message)
        if unknown:
            name = unknown.group(1).partition("=")[0]
            close = get_close_matches(name, sorted(known_options(self)), n=1)
            return f"unknown option {name}." + (f" Did you mean {close[0]}?" if close else "")
        no_file = re.search(r"File does not exist: '([^']*)'", message)
        if no_file:
            return f"file not found: {no_file.group(1)}."
        missing = re.search(r"required: (.+)|[Kk]ey \"(\w+)\" is required", message)
        if missing:
            return f"{(missing.group(1) or missing.group(2)).strip().upper()} is missing."
        key, value = re.search(r'Parser key "(\w+)"', message), re.search(r"G(?:iven|ot) value: (.*)", message)
        if key and value:
            wanted = re.findall(r"Expected an? (?:<class '(\w+)'>|typing\.Literal(\[.*?\]))", message)
            kinds = " or ".join(a or b for a, b in wanted if a != "NoneType")
            return f"--{key.group(1)} {value.group(1)}: not a valid value{f' (expected {kinds})' if kinds else ''}."
        text = " ".join(re.sub(r"^\s*- ", "", line).strip() for line in message.splitlines() if line.strip())
        return text[:400].rstrip(".") + "."


def known_options(parser: ArgumentParser) -> set[str]:
    """Options of a parser and of its subcommands, as they are typed: `-h`, `--help`.

    The one place that looks inside a parser: argparse lists its options nowhere in public. Without it an unknown option
    is named, but not the one that was probably meant.
    """
    known = set(parser._option_string_actions)
    for action in parser._actions:
        for subparser in action.choices.values() if isinstance(action.choices, dict) else ():
            known |= known_options(subparser)
    return known


def make_parser(function: Callable[..., Any], program: str) -> ArgumentParser:
    """The parser for a tool.

    Parameters without a default are positional, as are those named in the function's attribute `positional`. Bools are
    flags, and lists take several words. The attribute `aliases` gives options further names; `examples`, a list of command
    lines without the program's name, ends the help.

    Args:
        function: Typed, with a Google docstring.
        program: What the user typed to get here, for usage and messages.
    """
    examples = "\n".join(f"  {program} {example}" for example in getattr(function, "examples", []))
    docstring = parse_docstring(function.__doc__ or "")
    parser = ToolParser(
        prog=program,
        description="\n\n".join(filter(None, (docstring.short_description, docstring.long_description))),
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    helps = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in docstring.params}
    types = get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        name, default, text = parameter.name, parameter.default, helps.get(parameter.name)
        flags = (f"--{name}", *getattr(function, "aliases", {}).get(name, ()))
        if default is parameter.empty and get_origin(types[name]) is list:
            parser.add_argument(name, type=str, nargs="+", help=text)
        elif default is parameter.empty:
            parser.add_argument(name, type=types[name], help=text)
        elif name in getattr(function, "positional", ()):
            parser.add_argument(name, type=types[name], nargs="?", help=text)
        elif any(get_origin(kind) is list for kind in get_args(types[name])):
            parser.add_argument(f"--{name}", type=str, nargs="+", default=default, help=text)
        elif types[name] is bool:
            parser.add_argument(f"--{name}", action="store_true", help=text)
        else:
            parser.add_argument(*flags, type=types[name], default=default, help=text)
    parser.add_argument("--config", action=PlainConfigFile, help="A YAML file with values for these options.")
    return parser
