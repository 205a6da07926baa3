"""The messages between the API process and the engine core, as tagged msgpack structs.

Transport: the core binds a ZMQ ROUTER, each client connects a DEALER whose identity is its client id.
One frame of payload per message. The core sends at most one ``StepOutput`` per step and client.

A request's life: ``AddRequest`` -> exactly one ``Accepted`` or ``Rejected`` (before any HTTP header goes
out, so that 400 and 429 are real status codes) -> ``RequestOutput`` items inside ``StepOutput`` until one
carries a ``finish_reason``. After ``AbortRequests`` a client must expect no further output for those ids
but must tolerate what was already under way.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.protocol.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error", "timeout"]
RejectReason = Literal["invalid", "not_found", "queue_full", "draining", "internal"]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Base of everything that crosses the socket."""


# --- client to core -----------------------------------------------------------------------------------


class AddRequest(Message, frozen=True, kw_only=True):
    """``request_id`` is chosen by the client and unique among its unfinished requests.

    ``arrival_time`` is ``time.time()`` at the HTTP edge. ``priority``: lower runs first. Requests with
    different ``cache_salt`` never share prefix pages. ``after`` names a request of this client with the same
    prompt, which is computed first so that this one finds its pages. With ``pooling`` the request gets one
    vector and no tokens, whatever ``sampling`` says. ``timeout``: seconds from its arrival after which it
    ends with that finish reason, or earlier where its first token cannot come by then. ``adapter`` is the id
    of one that is loaded.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams = msgspec.field(default_factory=SamplingParams)
    arrival_time: float
    priority: int = 0
    cache_salt: str | None = None
    after: str | None = None
    pooling: PoolingParams | None = None
    timeout: float | None = None
    adapter: int | None = None


class AbortRequests(Message, frozen=True, kw_only=True):
    """Unknown or finished ids are ignored. Blocks are free again within one step."""

    request_ids: list[str]


class ResetPrefixCache(Message, frozen=True, kw_only=True):
    """Requests after this message find no page of those before it."""


class LoadAdapter(Message, frozen=True, kw_only=True):
    """Answered by ``AdapterAnswer``. ``adapter`` is an id that no other load had or will have: what is cached
    of an adapter goes by it, and not by the name, which may come again with other weights. Those of
    ``EngineConfig.lora_modules`` have the ids from 1 on."""

    adapter: int
    name: str
    path: str


class UnloadAdapter(Message, frozen=True, kw_only=True):
    """Requests that came before this message keep it until they end."""

    adapter: int


class Hello(Message, frozen=True, kw_only=True):
    """First message of a client; answered by ``EngineReady`` once warm-up is over."""


# --- core to client -----------------------------------------------------------------------------------


class EngineReady(Message, frozen=True, kw_only=True):
    """Facts that the API process cannot know by itself."""

    max_model_len: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    vocab_size: int
    weights_bytes: int
    device: str
    dtype: str
    pooled_size: int | None = None  # of the vectors that pooling requests get; None: it makes none


class Accepted(Message, frozen=True, kw_only=True):
    request_id: str


class Rejected(Message, frozen=True, kw_only=True):
    """``message`` says what to change; ``param`` names the field of the HTTP request, where there is one.
    ``retry_after``: seconds after which a full queue is likely to have room."""

    request_id: str
    reason: RejectReason
    message: str
    param: str | None = None
    retry_after: int = 1


class AdapterAnswer(Message, frozen=True, kw_only=True):
    """``problem`` None: requests may name it from now on. ``missing``: there is nothing at its path."""

    adapter: int
    problem: str | None = None
    missing: bool = False


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """One token's log-probability, how many tokens were likelier plus one, and the likeliest at its place."""

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int] = []
    top_logprobs: list[float] = []


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Newly committed tokens of one request, in order.

    ``stop_token_id`` is the id that ended it (None when it was the length). ``logprobs`` has one entry a
    token if they were asked for. ``cached_tokens``, the two times (``time.time()``) and ``prompt_logprobs``
    (of all prompt tokens but the first) come with the first output of a request only. ``error`` says why the
    finish reason is that. ``pooled`` is the vector of a pooling request: float32, least byte first.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str | None = None
    pooled: bytes | None = None
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    cached_tokens: int = 0
    scheduled_time: float | None = None
    first_token_time: float | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of gauges and monotonic counters; times are ``time.time()``.

    Blocks are counted without the null page: live + cached + free = total. *live* = referenced by a
    request; *cached* = unreferenced, but its content can still be hit; *free* = neither.
    """

    time: float
    running: int
    waiting: int
    queued_tokens: int  # prompt tokens of waiting requests that are not computed yet
    oldest_arrival: float | None  # arrival time of the longest waiting request
    blocks_live: int
    blocks_cached: int
    blocks_free: int
    steps: int
    prompt_tokens: int  # counter: prompt tokens computed or taken from the cache
    generation_tokens: int  # counter
    prefix_cache_queries: int  # counter, tokens
    prefix_cache_hits: int  # counter, tokens
    preemptions: int  # counter
    drafts: int = 0  # counter: requests of steps that had drafts
    draft_tokens: int = 0  # counter
    accepted_at: list[int] = []  # counters: drafts that came, by their place
    grammars_compiled: int = 0  # counter
    grammars_refused: int = 0  # counter: what cannot be held, or takes too long
    grammar_cache_hits: int = 0  # counter
    grammar_seconds: float = 0.0  # counter: from the first try to the compiled grammar
    iteration_tokens: list[int] = []  # tokens of each step since the last snapshot
    running_adapters: list[str] = []  # names, of requests that run
    waiting_adapters: list[str] = []


class StepOutput(Message, frozen=True, kw_only=True):
    """All of one step's news for one client. ``stats`` rides along at most ten times a second, always with
    the step that leaves the engine idle, and on its own (empty ``outputs``) after aborts that do."""

    outputs: list[RequestOutput]
    stats: EngineStats | None = None


class EngineFailed(Message, frozen=True, kw_only=True):
    """The core is about to exit non-zero; every request in flight is lost."""

    message: str


ClientMessage = Hello | AddRequest | AbortRequests | ResetPrefixCache | LoadAdapter | UnloadAdapter
CoreMessage = EngineReady | Accepted | Rejected | StepOutput | AdapterAnswer | EngineFailed

encode = msgspec.msgpack.Encoder().encode
decode_client: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
decode_core: msgspec.msgpack.Decoder[CoreMessage] = msgspec.msgpack.Decoder(CoreMessage)
