"""Turning jsonargparse's messages into a line or two that name the option, the way out and the closest match."""

from __future__ import annotations

import errno
import inspect
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
import yaml
from jsonargparse import ArgumentParser

from facelit import backbones, data, heads
from facelit.cli.parser import known_options
from facelit.errors import FacelitError

_ROOMS: dict[str, ModuleType] = {
    "model.backbone": backbones,
    "model.head": heads,
    "model.optimizer": torch.optim,
    "model.lr_scheduler": torch.optim.lr_scheduler,
    "data.train": data,
    "data.verification": data,
    "data.sampler": data,
    "data.augmentation": data,
}
"""Where the classes for an option are looked up by a user who got the name wrong."""

_NO_MEMORY = re.compile("out of memory|(can't|cannot) allocate memory|not enough memory", re.IGNORECASE)
"""torch has no class of its own for it on a CPU."""


def explain(message: str, parser: ArgumentParser) -> str:
    """Rewords a parser's message.

    Args:
        message: What jsonargparse would print below a page of usage.
        parser: The parser that met the mistake.

    Returns:
        One or two lines.
    """
    key = _first(r'Parser key "([^"]+)"', message)
    unknown_class = _first(r"has no attribute '(\w+)'|Expected a dot import path string: ([\w.]+)", message)
    if unknown_class:
        return _unknown_class(unknown_class, key)
    unknown_option = _first(r"unrecognized arguments: (\S+)|does not accept option '([^']+)'", message)
    if unknown_option:
        return _unknown_option(unknown_option, parser)
    not_accepted = _first(r"Option '([^']+)' is not accepted", message)
    if not_accepted:
        return _unknown_argument(not_accepted, parser)
    nested = _first(r"Not a valid subclass of \w+\. Got value: NestedArg\(key='([^']+)'", message)
    if nested:
        *_, name = nested.split(".")
        return f"unknown option {key}.{nested}.{_did_you_mean(name, _argument_names())} `--help` lists the options."
    not_a_subclass = _first(r"Import path (\S+) does not correspond to a subclass of", message)
    if not_a_subclass:
        wanted = _first(r"does not correspond to a subclass of (\w+)", message)
        return f"{key}: {not_a_subclass} is not a {wanted}. {_choices(key)}".strip()
    required = _first(r"arguments are required: (.+)", message)
    if required:
        return (
            f"missing: {required}. Give a configuration, for example --config configs/center.yaml; to try it on built-in"
            " faces add --config configs/demo.yaml"
        )
    return _one_line(message, key)


def name_broken_config(message: str, args: object) -> str:
    """Jsonargparse does not say which of several configuration files it could not read: finds out.

    Args:
        message: An error message.
        args: The command line's arguments.

    Returns:
        The message, with the file's name where it is about a file that is not YAML.
    """
    if not message.startswith("Problems parsing config") or not isinstance(args, list):
        return message
    for path in [value for option, value in pairwise(args) if option in ("--config", "-c")]:
        try:
            yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            return f"{path}{where}: not a YAML file ({getattr(error, 'problem', None) or error})."
    return message


def explain_memory(error: BaseException) -> FacelitError | None:
    """What to say where there was no memory left, on the machine or the GPU; None about another error."""
    text = str(error)
    ran_out = isinstance(error, MemoryError | torch.OutOfMemoryError)
    ran_out = ran_out or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not ran_out and not (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return None
    size = re.search(r"tried to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
    return FacelitError(
        f"out of memory{f' (tried to allocate {size[1]})' if size else ''}. Lower data.batch_size (or what the sampler makes of it),"
        " data.eval_batch_size or data.num_workers."
    )


def _unknown_class(name: str, key: str) -> str:
    named = name.rpartition(".")[2]
    room = _room(key)
    candidates = _class_names(room) if room else [name for module in _ROOMS.values() for name in _class_names(module)]
    return (
        f"{key or 'class_path'}: there is no class {name}.{_did_you_mean(named, candidates)} {_choices(key)}".rstrip()
    )


def _unknown_option(option: str, parser: ArgumentParser) -> str:
    name, _, _ = option.lstrip("-").partition("=")
    known = sorted(text.lstrip("-") for text in known_options(parser) if text.startswith("--"))
    first, _, rest = name.partition(".")
    sections = {key.partition(".")[0] for key in known}
    if rest and first not in sections:
        close = get_close_matches(first, sections, n=1)
        suggestion = f" Did you mean {close[0]}.{rest}?" if close else ""
    else:
        suggestion = _did_you_mean(name, known)
    return f"unknown option {option}.{suggestion} `--help` lists the options."


def _unknown_argument(name: str, parser: ArgumentParser) -> str:
    """Of an option that a class, whose parser this is, does not have."""
    own = sorted(text[2:] for text in known_options(parser) if re.fullmatch(r"--\w+", text) and text != "--help")
    if not own:
        return f"unknown option {name}: name the class that has it first."
    return f"unknown option {name}.{_did_you_mean(name, own)} This class takes {', '.join(own)}."


def _one_line(message: str, key: str) -> str:
    """The message without jsonargparse's layout."""
    # Options written out, `{...}`, were looked for as a file, too.
    message = re.sub(r"- Expected a path but \{.*? either not accessible or invalid\n", "", message, flags=re.DOTALL)
    text = re.sub(r'Parser key "[^"]+":', "", message)
    text = re.sub(r"Given value type:.*", "", text, flags=re.DOTALL)
    text = re.sub(r"Does not validate against any of the Union subtypes.*?Errors:", "", text, flags=re.DOTALL)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    text = text.replace("Expected a NoneType", "")
    text = " ".join(re.sub(r"^\s*- ", "", line).strip() for line in text.splitlines() if line.strip())
    text = re.sub(r"File does not exist: '([^']*)'", r"file not found: \1", text)
    return f"{key}: {text[:400]}" if key else text[:400]


def _choices(key: str) -> str:
    """The classes that facelit brings for an option; torch's long lists are not worth printing."""
    room = _room(key)
    if room is None or room.__name__.startswith("torch"):
        return ""
    base = {
        "model.head": heads.Head,
        "data.train": data.IdentitySource,
        "data.verification": data.VerificationSource,
    }
    wanted = base.get(key)
    names = [n for n in _class_names(room) if wanted is None or _is_choice(getattr(room, n), wanted)]
    return f"There are: {', '.join(names)}." if wanted or room is backbones else ""


def _is_choice(cls: type, wanted: type) -> bool:
    return issubclass(cls, wanted) and not inspect.isabstract(cls)


def _room(key: str) -> ModuleType | None:
    for option, module in _ROOMS.items():
        if key == option or key.startswith(f"{option}."):
            return module
    return None


def _class_names(room: ModuleType) -> list[str]:
    return sorted(name for name, value in vars(room).items() if inspect.isclass(value) and not name.startswith("_"))


def _argument_names() -> Iterator[str]:
    """Names of the arguments of every class that can stand in a configuration."""
    for room in (backbones, heads, data):
        for name in _class_names(room):
            parameters = inspect.signature(getattr(room, name)).parameters.values()
            yield from (each.name for each in parameters if each.kind is not each.VAR_KEYWORD)  # **options: its base's


def _did_you_mean(name: str, candidates: Iterable[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]}?" if close else ""


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return next((group for group in match.groups() if group), "") if match else ""
