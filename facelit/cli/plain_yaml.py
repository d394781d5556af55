"""Refusing YAML that is not a configuration, before a parser makes objects of it."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

from facelit.errors import FacelitError

_DEEPEST = 50
_MOST_NODES = 100_000
_LARGEST = 10_000_000  # bytes
_LONGEST = 100  # digits
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_config_file(path: Path) -> None:
    """Looks at a configuration file without building anything from it.

    Where the file is absent this does nothing: the parser that reads it says so.

    Raises:
        FacelitError: It is not a file, not text, not YAML or not options; is too large or too deep for a configuration; names an option
            twice; or its aliases stand for more than a configuration holds, or for what they lie in.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise FacelitError(
                f"{path}: a pipe or a device. A configuration has to be a file, as it is read more than once."
            )
        if status.st_size > _LARGEST:
            raise FacelitError(f"{path}: {status.st_size:,} bytes are too many for a configuration.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise FacelitError(f"{path}: not a YAML file (it is not text in UTF-8).") from None
    except OSError:
        return
    try:
        _check(text, path)
        _check_nodes(yaml.compose(text, Loader=_LOADER), path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise FacelitError(f"{path}{where}: not a YAML file ({reason}).") from None


def _check_nodes(root: yaml.Node | None, path: Path) -> None:
    """Names what a parser would take without a word, or in no words of ours; the nodes are known to be few."""
    if not isinstance(root, yaml.MappingNode):
        what = "empty" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise FacelitError(f"{path}: no configuration, but {what}. It has to consist of lines such as `trainer: ...`.")
    left, seen = [root], set()
    while left:
        node = left.pop()
        if id(node) in seen:  # an alias's
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: dict[str, int] = {}
            for key, _ in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:null":
                    raise FacelitError(f"{path}, line {line}: an option without a name.")
                if name in keys and key.tag != "tag:yaml.org,2002:merge":
                    raise FacelitError(f"{path}, line {line}: `{name}` is there twice, first in line {keys[name]}.")
                keys[name] = line
            left += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
        elif node.tag == "tag:yaml.org,2002:int" and len(node.value) > _LONGEST:
            line = node.start_mark.line + 1
            raise FacelitError(f"{path}, line {line}: a number of {len(node.value):,} digits, which no option takes.")


def _check(text: str, path: Path) -> None:
    """Counts nodes as aliases multiply them; events come one by one, however deep the file is."""
    sizes: dict[str | None, int] = {}
    open_nodes: list[list[Any]] = [[None, 0]]  # anchor and number of nodes so far
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([event.anchor, 1])
            if len(open_nodes) > _DEEPEST:
                raise FacelitError(
                    f"{path}, {_line(event)}: nested more than {_DEEPEST} deep, which no configuration is."
                )
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise FacelitError(f"{path}, {_line(event)}: *{event.anchor} stands for what it lies in.")
            open_nodes[-1][1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1
            open_nodes[-1][1] += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            sizes[anchor] = size
            open_nodes[-1][1] += size
        if open_nodes[-1][1] > _MOST_NODES:
            raise FacelitError(
                f"{path}, {_line(event)}: stands for more than {_MOST_NODES:,} values, which no configuration does."
            )


def _line(event: yaml.Event) -> str:
    return f"line {event.start_mark.line + 1 if event.start_mark else 1}"
