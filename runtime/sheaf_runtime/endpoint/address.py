"""Where an endpoint is and which key it gets."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

DEFAULT = "http://127.0.0.1:8000"


def add_flags(add: Callable[..., Any]) -> None:
    """The flags of every command that talks to an endpoint."""
    add(
        "--base-url",
        "--url",
        type=base_url,
        default=DEFAULT,
        metavar="URL",
        help="the server, with or without /v1",
    )
    add("--model", metavar="NAME", help="default: the first that the server lists")
    add(
        "--api-key", metavar="KEY", help="default: $SHEAF_API_KEY or $OPENAI_API_KEY, which are seen by fewer"
    )


def base_url(text: str) -> str:
    """The root of a server, without a slash at its end. People paste it with a route, or without a scheme."""
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    url = re.sub(r"(/v1)?(/(chat/)?completions|/models)?/*$", "", url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or port == 0
        or parts.query
        or parts.fragment
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no address of a server; write http://HOST:PORT")
    return url


def api_key(given: str | None) -> str | None:
    """The flag's, or the environment's."""
    return given or os.environ.get("SHEAF_API_KEY") or os.environ.get("OPENAI_API_KEY") or None


def is_local(url: str) -> bool:
    """Whether no proxy can reach it for us."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")
