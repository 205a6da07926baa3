"""``sheaf chat``: the loop of questions and answers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys

import aiohttp

from sheaf_runtime.chat.conversation import Conversation
from sheaf_runtime.chat.options import parser
from sheaf_runtime.chat.stream import answer
from sheaf_runtime.chat.terminal import Screen
from sheaf_runtime.endpoint.address import api_key
from sheaf_runtime.endpoint.errors import EndpointError
from sheaf_runtime.endpoint.session import open_session, served_models
from sheaf_runtime.flags.parser import OptionError

OK, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
REMARKS = {"length": "cut: --max-tokens or the context's end", "content_filter": "cut by the server's filter"}


def main(argv: list[str]) -> int:
    # Ctrl-C as an exception: while an answer comes it ends just that (asyncio.Runner cancels it).
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(AttributeError):  # a stream of a test
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    screen = Screen(sys.stdout)
    try:
        given = argparse.Namespace(**parser().read(argv))
        with asyncio.Runner() as runner:
            return _Chat(given, runner, screen).run()
    except OptionError as error:
        screen.error(error)
        return WRONG
    except EndpointError as error:
        screen.error(error)
        return FAILED
    except KeyboardInterrupt:
        screen.end_line()
        return INTERRUPTED
    except BrokenPipeError:  # a pager or head that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


class _Chat:
    """Raises ``EndpointError`` and ``KeyboardInterrupt`` for what ends more than an answer."""

    def __init__(self, given: argparse.Namespace, runner: asyncio.Runner, screen: Screen) -> None:
        self._given, self._runner, self._screen = given, runner, screen
        self._url: str = given.base_url

    def run(self) -> int:
        given = self._given
        interactive = given.quick is None and sys.stdin.isatty()
        question = None if interactive else _question(given.quick)
        session = self._runner.run(self._open())
        try:
            model = given.model or self._runner.run(served_models(session, self._url))[0]
            chat = Conversation(model, given.system_prompt, _options(given))
            if question is not None:
                self._turn(session, chat, question)
                return OK
            return self._talk(session, chat)
        finally:
            self._runner.run(session.close())

    async def _open(self) -> aiohttp.ClientSession:
        return open_session(self._url, api_key(self._given.api_key))

    def _talk(self, session: aiohttp.ClientSession, chat: Conversation) -> int:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines and remembers them where it is there
        self._screen.remark(
            f"{chat.model} at {self._url}: Ctrl-C stops an answer, Ctrl-D ends, /reset forgets"
        )
        while True:
            try:
                question = _clean(input("> ")).strip()
            except EOFError:
                print()
                return OK
            except KeyboardInterrupt:
                print()
                continue
            if question == "/reset":
                chat.reset()
                self._screen.remark("forgotten")
            elif question:
                try:
                    self._turn(session, chat, question)
                except KeyboardInterrupt:
                    self._screen.remark("stopped")
                except EndpointError as error:
                    full = error.status == 400 and chat.has_past and "context" in str(error)
                    self._screen.error(f"{error} (/reset forgets the conversation)" if full else error)

    def _turn(self, session: aiohttp.ClientSession, chat: Conversation, question: str) -> None:
        """One question and its answer, which is remembered as far as it came."""
        said: list[str] = []
        try:
            self._runner.run(self._show(session, chat.ask(question), said))
        except EndpointError:
            chat.failed()
            raise
        except KeyboardInterrupt:
            chat.answered("".join(said))
            raise
        chat.answered("".join(said))

    async def _show(self, session: aiohttp.ClientSession, body: dict[str, object], said: list[str]) -> None:
        end = None
        async with contextlib.aclosing(answer(session, self._url, body)) as stream:
            async for thought, text, reason in stream:
                self._screen.thought(thought)
                self._screen.text(text)
                said.append(text)
                end = reason or end
        self._screen.end_line()
        if end not in ("stop", None):
            self._screen.remark(REMARKS.get(end, f"ended: {end}"))
        elif not any(said):
            self._screen.remark("no text")


def _question(quick: str | None) -> str:
    """Raises ``OptionError`` if there is nothing to ask."""
    text = _clean(quick if quick is not None else sys.stdin.buffer.read().decode(errors="replace")).strip()
    if not text:
        raise OptionError("there is nothing to ask; write --quick MESSAGE, or text to stdin")
    return text


def _clean(text: str) -> str:
    """Bytes that were no text (a terminal of another encoding) come as what JSON cannot hold."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _options(given: argparse.Namespace) -> dict[str, object]:
    names = {"max_completion_tokens": "max_tokens", "temperature": "temperature", "seed": "seed"}
    chosen = {
        field: getattr(given, name) for field, name in names.items() if getattr(given, name) is not None
    }
    return {**chosen, **given.extra_body}
