"""What configuration files mean together: verification sets add up, and paths may have `~` and `$VAR` in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]  # exported, but not where mypy looks

from facelit.cli.plain_yaml import check_config_file
from facelit.storage.paths import expand_path

_SETS = "data.verification"


class PlainConfigFile(ActionConfigFile):
    """`--config` with a file that may come from anybody."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Applies a file, if it looks like a configuration."""
        path = expand_path(values) if isinstance(values, str) else values
        if isinstance(path, str) and "\n" not in path:
            check_config_file(Path(path))
        super().__call__(parser, cfg, path, option_string)  # type: ignore[no-untyped-call]  # jsonargparse's own


class AddingConfigFile(PlainConfigFile):
    """`--config`, whose verification sets are added to those of earlier files, as they are on the command line.

    A set of the same name and class is changed in what the later file says of it; `name: null` removes a set, and
    `verification: null` all of them.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Applies a file."""
        before = cfg.get(_SETS)
        super().__call__(parser, cfg, values, option_string)
        after = cfg.get(_SETS)
        if isinstance(after, Mapping):
            cfg[_SETS] = _added(before if isinstance(before, Mapping) else {}, after)


def with_our_config_file(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a parser's argument; those of a `--config` with `AddingConfigFile` instead of jsonargparse's own."""
    return {**options, "action": AddingConfigFile} if options.get("action") is ActionConfigFile else options


def _added(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    sets = dict(before)
    for name, options in after.items():
        sets[name] = _changed(sets.get(name), options)
    return {name: options for name, options in sets.items() if options is not None}


def _changed(before: Any, after: Any) -> Any:
    """The options of one set; those of another class have nothing in common."""
    old, new = _plain(before), _plain(after)
    if not isinstance(old, dict) or not isinstance(new, dict):
        return after
    if new.get("class_path", old.get("class_path")) != old.get("class_path"):
        return after
    options = {**(old.get("init_args") or {}), **(new.get("init_args") or {})}
    return {**old, **new, **({"init_args": options} if options else {})}


def _plain(options: Any) -> Any:
    return options.as_dict() if isinstance(options, Namespace) else options


def expand_paths(values: Any) -> Any:
    """Every string in a configuration, however deep, through `expand_path`; namespaces, dicts and lists are changed in place.

    Raises:
        FacelitError: A path has an environment variable in it that is not set.
    """
    if isinstance(values, str):
        return expand_path(values)
    if isinstance(values, Namespace):
        values.__dict__.update({key: expand_paths(value) for key, value in vars(values).items()})
    elif isinstance(values, dict):
        values.update({key: expand_paths(value) for key, value in values.items()})
    elif isinstance(values, list):
        values[:] = map(expand_paths, values)
    return values
