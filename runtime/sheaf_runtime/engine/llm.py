"""The engine in this process: ``LLM(folder).generate(prompts)``, without server or sockets."""

from __future__ import annotations

import gc
import itertools
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from sheaf_runtime.config import EngineConfig, check_config
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.outputs import Output
from sheaf_runtime.gguf.folder import open_folder
from sheaf_runtime.protocol.messages import AddRequest, EngineStats, FinishReason, Rejected, TokenLogprobs
from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.text.output import OutputText
from sheaf_runtime.text.tokenizer import Tokenizer
from sheaf_runtime.worker.local import LocalExecutor

Prompt = str | list[int]
Vector = list[float]
_CLIENT = b""


@dataclass(slots=True)
class Completion:
    """What came of one prompt. ``prompt`` is None where token ids were given; ``token_ids`` is the output
    with the token that ended it, which ``text`` does not show; ``cached_tokens`` of the prompt were not
    computed, because an earlier request had left their pages. ``logprobs`` has one entry an output token,
    ``prompt_logprobs`` one a prompt token but the first, if they were asked for. ``error`` says why the
    finish reason is that."""

    prompt: str | None
    prompt_token_ids: list[int]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop id or stop string
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str | None = None


class LLM:
    """A loaded model. ``options`` are the fields of ``EngineConfig``.

    Not thread-safe. Close it, or use it as a context manager, to give the memory back.
    """

    def __init__(self, model: str, **options: Any) -> None:
        options.setdefault("max_waiting_requests", sys.maxsize)  # nobody else is waiting for an answer
        config = EngineConfig(model=str(model), **options)
        check_config(config)
        self.tokenizer = Tokenizer.from_folder(open_folder(config.model))
        self._executor = LocalExecutor(config)
        self._executor.warm_up()
        self._core = EngineCore(self._executor, config)
        self._ids = itertools.count()
        gc.collect()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: str | Sequence[str] = (),
    ) -> list[Completion]:
        """Run all prompts together; results come in the order of the prompts.

        One text, or one list of token ids, is one prompt.
        ``params`` is one for all or one each. ``stop`` strings end a request and are cut off its text.
        Raises ``ValueError`` if a request can never run; nothing has run then.
        """
        listed = _as_list(prompts)
        params = SamplingParams() if params is None else params
        each = [params] * len(listed) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(listed):
            raise ValueError(f"{len(listed)} prompts, but {len(each)} sampling parameters")
        stop = (stop,) if isinstance(stop, str) else stop
        if any(not s for s in stop):
            raise ValueError("a stop string is empty")

        active: dict[str, tuple[Completion, OutputText]] = {}
        completions: list[Completion] = []
        try:
            for prompt, sampling in zip(listed, each, strict=True):
                ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
                completion = Completion(prompt if isinstance(prompt, str) else None, ids)
                request_id = str(next(self._ids))
                answer = self._core.add(
                    _CLIENT,
                    AddRequest(
                        request_id=request_id,
                        prompt_token_ids=ids,
                        sampling=sampling,
                        arrival_time=time.time(),
                    ),
                )
                while answer is None:  # its grammar is being compiled
                    time.sleep(0.001)
                    answer = next((answer for _, answer in self._core.take_ready()), None)
                if isinstance(answer, Rejected):
                    raise ValueError(f"prompt {len(completions)}: {answer.message}")
                text = OutputText(self.tokenizer, stop=stop, min_tokens=sampling.min_tokens, after=ids)
                active[request_id] = completion, text
                completions.append(completion)
            while active:
                for output in self._core.step():
                    self._take(output, active)
        finally:
            self._core.abort(_CLIENT, list(active))
            while self._core.busy:  # a step that was launched for a token nobody needs any more
                self._core.step()
        self._core.check_integrity()
        return completions

    def embed(self, prompts: Prompt | Sequence[Prompt], params: PoolingParams | None = None) -> list[Vector]:
        """The vector of each prompt, of a model that makes embeddings or scores.

        Raises ``ValueError`` if a request can never run; ``RuntimeError`` if one fails.
        """
        vectors: dict[str, Vector] = {}
        running: set[str] = set()
        try:
            for prompt in _as_list(prompts):
                ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
                message = AddRequest(
                    request_id=str(next(self._ids)),
                    prompt_token_ids=ids,
                    arrival_time=time.time(),
                    pooling=params or PoolingParams(),
                )
                answer = self._core.add(_CLIENT, message)
                if isinstance(answer, Rejected):
                    raise ValueError(f"prompt {len(vectors)}: {answer.message}")
                vectors[message.request_id] = []
                running.add(message.request_id)
            while running:
                for output in self._core.step():
                    running.discard(output.request.request_id)
                    if output.pooled is None:
                        raise RuntimeError(output.error)
                    vectors[output.request.request_id] = array("f", output.pooled).tolist()
        finally:
            self._core.abort(_CLIENT, list(running))
            while self._core.busy:
                self._core.step()
        self._core.check_integrity()
        return list(vectors.values())

    def _take(self, output: Output, active: dict[str, tuple[Completion, OutputText]]) -> None:
        request = output.request
        completion, text = active[request.request_id]
        completion.cached_tokens = request.cached_tokens
        completion.token_ids += output.token_ids
        completion.logprobs += output.logprobs
        completion.prompt_logprobs = request.scored
        completion.error = output.error
        completion.text += text.push(
            output.token_ids,
            finished=output.finish_reason is not None,
            stop_token_id=output.stop_token_id,
        )
        if text.stop_string is not None:
            del completion.token_ids[text.num_tokens :], completion.logprobs[text.num_tokens :]
            completion.finish_reason, completion.stop_reason = "stop", text.stop_string
            self._core.abort(_CLIENT, [request.request_id])
        elif output.finish_reason is not None:
            stop = output.stop_token_id
            asked = stop in request.sampling.stop_token_ids
            completion.finish_reason, completion.stop_reason = output.finish_reason, stop if asked else None
        if completion.finish_reason is not None:
            del active[request.request_id]

    def stats(self) -> EngineStats:
        return self._core.take_stats()

    def close(self) -> None:
        self._core.structured.compiler.close()
        self._executor.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    ids = [p for p in prompts if isinstance(p, int)]
    if ids and len(ids) == len(prompts):
        return [ids]
    if not all(isinstance(p, (str, list)) for p in prompts):
        raise ValueError("prompts must be texts or lists of token ids")
    return [p for p in prompts if not isinstance(p, int)]
