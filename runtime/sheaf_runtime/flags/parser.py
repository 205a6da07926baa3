"""The command line of every subcommand: groups, aligned help with defaults, refusals of one line."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from sheaf_runtime.flags.dotted import DottedError, whole

JSON = "JSON"  # the metavar of flags whose value is an object
MOST_COLUMNS = 110
HELP_COLUMN = 36


class OptionError(ValueError):
    """A flag or a value that cannot be used; one line that says what to change."""


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations: a flag that is added later must not change what a shorter one means.

    ``absent`` says what to do instead of flags that people bring from elsewhere and that are not here.
    """

    def __init__(self, *, absent: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)
        self._absent = absent or {}

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Values by name. Raises ``OptionError``; ``--help`` prints and exits as argparse does."""
        argv = [self._dashed(item) for item in argv]
        for item in argv:
            _refuse_blanks(item)
        try:
            argv = whole(argv, self._json_flags())
        except DottedError as error:
            raise OptionError(str(error)) from error
        # What is missing is judged after what is unknown: `--model m` is a hint for who leaves MODEL out.
        unknown = next((item for item in argv if self._is_unknown(item)), None)
        if unknown is not None:
            raise OptionError(self.unknown(unknown))
        return vars(self.parse_args(argv))

    def error(self, message: str) -> NoReturn:
        raise OptionError(message)

    def names(self) -> list[str]:
        return sorted(self._option_string_actions)

    def groups(self) -> Iterable[tuple[str, list[argparse.Action]]]:
        """Title and arguments of each group, as ``--help`` shows them."""
        for group in self._action_groups:
            if shown := [a for a in group._group_actions if a.help is not argparse.SUPPRESS]:
                yield group.title or "", shown

    def _json_flags(self) -> list[str]:
        return [flag for flag, action in self._option_string_actions.items() if action.metavar == JSON]

    def _dashed(self, item: str) -> str:
        """A flag that is written with underscores is the one with dashes, as in vLLM."""
        flag, equals, value = item.partition("=")
        dashed = flag.replace("_", "-")
        return dashed + equals + value if dashed in self._option_string_actions else item

    def _is_unknown(self, item: str) -> bool:
        # A negative number or a lone dash is a value, and so is text with a blank in it.
        if not re.match(r"--?[A-Za-z]", item) or " " in item.partition("=")[0]:
            return False
        return item.partition("=")[0] not in self._option_string_actions

    def action(self, flag: str) -> argparse.Action | None:
        """That of a flag, if there is one."""
        return self._option_string_actions.get(flag)

    def unknown(self, item: str) -> str:
        """What to do instead of a flag that there is not."""
        flag = item.partition("=")[0]
        name = "--" + flag.lstrip("-").replace("_", "-").lower()
        head, dot, _ = name.partition(".")
        for known in (flag, name, head):
            if known in self._absent:
                return f"{flag} is not supported: {self._absent[known]}"
        if dot and head in self._option_string_actions:
            return f"unrecognized argument {flag}; {head} has no keys"
        names = [n for n in self.names() if n.startswith("--")]
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
        longer = [n for n in names if n.startswith(name)] if len(name) > 4 else []
        guess = f"; did you mean {(close or longer)[0]}?" if close or longer else "; --help lists them"
        return f"unrecognized argument {flag}{guess}"


def default_of(action: argparse.Action) -> str | None:
    """The default in words; None where there is nothing to say."""
    value = action.default
    if action.required or not action.option_strings or value in (None, argparse.SUPPRESS, (), []):
        return None
    if isinstance(action, argparse.BooleanOptionalAction):
        return "on" if value else "off"
    if isinstance(value, bool) or value == {} or not isinstance(value, str | int | float | tuple):
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def help_of(action: argparse.Action) -> str:
    """The help text without its default."""
    return (action.help or "").removesuffix(" (default: %(default)s)").replace("%%", "%")


def usage_of(action: argparse.Action) -> str:
    """``--flag VALUE`` as it is written."""
    if not action.option_strings:
        return str(action.metavar or action.dest)
    if isinstance(action, argparse.BooleanOptionalAction):
        return action.option_strings[0].replace("--", "--[no-]", 1)
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    if action.choices is not None and action.metavar is None:
        return f"{names} {{{','.join(map(str, action.choices))}}}"
    value = str(action.metavar or action.dest.rsplit("_", 1)[-1].upper())
    return (
        f"{names} {({'+': '{} [{} ...]', '*': '[{} ...]'}.get(str(action.nargs), '{}')).format(value, value)}"
    )


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
        super().__init__(prog, max_help_position=HELP_COLUMN, width=columns)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return usage_of(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = help_of(action), default_of(action)
        if default is not None and "default:" not in text:
            text = f"{text} (default: {default})".strip()
        return text.replace("%", "%%")

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        """One line: the flags are listed below anyway."""
        places = " ".join(usage_of(a) for a in actions if not a.option_strings)
        return f"usage: {self._prog} {places}{' ' if places else ''}[flags]\n\n"


def _refuse_blanks(item: str) -> None:
    """A list in YAML or JSON holds one argument an item; a flag and its value written into one would
    otherwise be taken for a name of something."""
    if item.startswith("-") and item != item.rstrip():
        raise OptionError(f"{item!r} ends with a blank or line break; write {item.rstrip()!r}")
    flag = re.match(r"\s*(--?[a-z][a-z0-9_.+-]*)\s+(.*)", item, re.DOTALL)
    if flag is None:
        return
    name, value = flag[1], flag[2].strip()
    raise OptionError(
        f"{item!r} is one argument with a blank in it; write two arguments, {name!r} and {value!r}, "
        f"or {f'{name}={value}'!r}"
    )
