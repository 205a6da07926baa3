"""The command line of ``sheaf chat``."""

from __future__ import annotations

from sheaf_runtime.endpoint import address
from sheaf_runtime.flags import values
from sheaf_runtime.flags.parser import Parser


def parser() -> Parser:
    made = Parser(
        prog="sheaf chat",
        description="Talk to an OpenAI-compatible endpoint.",
        epilog="Ctrl-C stops an answer, Ctrl-D ends, /reset forgets the conversation. Where stdin is no"
        " terminal, all of it is one question. Exit status: 0, 1 if there was no answer, 2 for wrong flags.",
        absent={
            "--model-name": "write --model",
            "--endpoint": "write --base-url",
            "--stream": "leave it out, answers are always streamed",
        },
    )
    add = made.add_argument_group("server").add_argument
    address.add_flags(add)
    add = made.add_argument_group("conversation").add_argument
    add("--system-prompt", metavar="TEXT", help="stands before the conversation, also after /reset")
    add("-q", "--quick", metavar="MESSAGE", help="ask this, print the answer, end; stdin is not read")
    add = made.add_argument_group("sampling, the server's own defaults otherwise").add_argument
    add("--max-tokens", type=values.positive, metavar="N", help="most tokens of an answer")
    add("--temperature", type=float, metavar="X", help="0 is greedy")
    add("--seed", type=values.seed, metavar="N", help="equal seeds give equal answers")
    add(
        "--extra-body",
        type=values.json_object,
        default={},
        metavar="JSON",
        help="further fields of every request",
    )
    return made
