"""``--config FILE``: flags from a YAML file, as vLLM has it. What the command line says beats the file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sheaf_runtime.flags.parser import OptionError, Parser

FLAG = "--config"


def read_with_config(parser: Parser, argv: Sequence[str]) -> dict[str, Any]:
    """Values by name, as ``Parser.read``; MODEL may be the file's ``model``. Raises ``OptionError``."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument(FLAG)
    try:
        path = finder.parse_known_args(argv)[0].config
    except argparse.ArgumentError:  # no value: the whole parser says it better
        path = None
    if path is None:
        return parser.read(argv)
    settings = _load(path)
    model = settings.pop("model", None)
    if model is not None and not isinstance(model, str):
        raise OptionError(f"{path}: model must be a folder, a file or a name on the hub")
    try:
        # The place of MODEL is taken here, whatever it is.
        given = vars(parser.parse_args([*_arguments(parser, settings), "--", model or "MODEL"]))
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    parser.set_defaults(**{_dest(parser, name): given[_dest(parser, name)] for name in settings})
    try:
        return parser.read(argv)
    except OptionError:
        if model is None:
            raise
        return parser.read([*argv, "--", model])


def _load(path: str) -> dict[str, Any]:
    """The file's keys as flags without their dashes."""
    try:
        content = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise OptionError(f"{FLAG} {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise OptionError(f"{FLAG} {path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise OptionError(f"{FLAG} {path} must be a list of flags without their dashes, as port: 8000")
    return {key.replace("_", "-"): value for key, value in content.items() if value is not None}


def _arguments(parser: Parser, settings: Mapping[str, Any]) -> list[str]:
    """The flags as a command line has them."""
    arguments: list[str] = []
    for name, value in settings.items():
        action = parser.action(f"--{name}")
        if action is None:
            raise OptionError(parser.unknown(f"--{name}"))
        if f"--{name}" == FLAG:
            raise OptionError("a file cannot name another; write its flags here")
        arguments += _written(action, name, value)
    return arguments


def _written(action: argparse.Action, name: str, value: Any) -> list[str]:
    flag = f"--{name}"
    if isinstance(action, argparse.BooleanOptionalAction) and isinstance(value, bool):
        # A false is said, not left out: the default may be true.
        plain, off = action.option_strings[:2]
        return [plain if value == (flag == plain) else off]
    if action.nargs == 0 and isinstance(value, bool):
        return [flag] if value else []
    if action.nargs == "+" and isinstance(value, list):
        return [flag, *map(_text, value)]
    return [f"{flag}={_text(value)}"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _dest(parser: Parser, name: str) -> str:
    action = parser.action(f"--{name}")
    assert action is not None
    return action.dest
