"""From the text of a model to thoughts, content and tool calls: small incremental parsers, one per format.

A leaf without any I/O. Every parser takes text in pieces of any size and gives events; what is no thought and
no call is content.
"""

from sheaf_runtime.parsers.events import (
    Arguments,
    CallBegun,
    CallBroken,
    Event,
    Parser,
    Text,
    Thought,
    joined,
)
from sheaf_runtime.parsers.families import (
    REASONING,
    TOOLS,
    guess_tool_parser,
    in_channels,
    output_parser,
    tool_calls,
    visible_marks,
)

__all__ = [
    "REASONING",
    "TOOLS",
    "Arguments",
    "CallBegun",
    "CallBroken",
    "Event",
    "Parser",
    "Text",
    "Thought",
    "guess_tool_parser",
    "in_channels",
    "joined",
    "output_parser",
    "tool_calls",
    "visible_marks",
]
