"""The ``sheaf`` command. Each subcommand's module is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys

# name -> (module:function taking argv, one line of help). Modules of other distributions' extras are named
# as text, so that a machine with only the operator installed can still run the operator's subcommands.
COMMANDS = {
    "serve": ("sheaf_runtime.server.launch:main", "serve a model behind an OpenAI-compatible API"),
    "chat": ("sheaf_runtime.chat.command:main", "talk to an OpenAI-compatible endpoint"),
    "bench": ("sheaf_runtime.bench.command:main", "put load on an endpoint: sheaf bench serve"),
    "status": ("sheaf_operator.console.command:main", "show an LLMDeployment of a cluster, live"),
}

USAGE = "usage: sheaf COMMAND [flags]\n\ncommands:\n" + "".join(
    f"  {name:<10} {text}\n" for name, (_, text) in COMMANDS.items()
)
USAGE += "\nsheaf COMMAND --help lists its flags, sheaf --version the version.\n"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from sheaf_runtime import __version__

        print(f"sheaf {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"sheaf: no command {argv[0]!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    open_standard_streams()
    end_on_signals()
    module, _, function = COMMANDS[argv[0]][0].partition(":")
    result: int = getattr(importlib.import_module(module), function)(argv[1:])
    return result


def end_on_signals() -> None:
    """Until a command does better a signal is an ordinary end: nothing runs yet that has to be drained.
    nohup's SIGHUP stays ignored."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signum is not signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda *_: os._exit(0))


def open_standard_streams() -> None:
    """Whoever starts us may have closed some of the first three descriptors: a socket that got one of them
    would be lost when a child process puts its own streams there."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)
