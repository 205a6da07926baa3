"""What the engine knows of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b

import msgspec

from sheaf_runtime.engine.drafting import Drafting
from sheaf_runtime.engine.kv_cache import BlockTables
from sheaf_runtime.engine.order import Rank, rank
from sheaf_runtime.engine.prefix import root_digest
from sheaf_runtime.protocol.messages import AddRequest, FinishReason, TokenLogprobs
from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.protocol.sampling import SamplingParams


class Status(Enum):
    WAITING = "waiting"  # holds no pages and is unknown to the worker
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Request:
    """Three counts chase each other: a token is *in flight* from launch to commit, then *computed* (its keys
    and values are in the cache); a sampled token is *committed* once the host has seen it.

    ``token_ids`` is the prompt followed by the committed output. ``in_flight_samples`` tokens more exist
    on the device only. ``epoch`` grows whenever launched work becomes void (preemption, end).
    """

    req_id: int
    client: bytes
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams  # seed is set
    stop_ids: frozenset[int]
    arrival_time: float
    priority: int  # the lower, the earlier
    rank: Rank  # the lowest is served first and preempted last
    root: bytes  # of the digest chain of its pages
    extras: tuple[str, ...] = ()  # what the root was made of, in words
    adapter: int | None = None
    adapter_name: str | None = None
    pooling: PoolingParams | None = None
    pools_all: bool = False  # each position's hidden state takes part
    digests: list[bytes] = field(default_factory=list)
    after: Request | None = None  # has the same prompt, and computes it for both
    after_id: str | None = None  # its name, while this one waits for its grammar
    deadline: float | None = None  # when it ends, whatever it has got

    status: Status = Status.WAITING
    epoch: int = 0
    held: BlockTables | None = None
    computed: int = 0
    in_flight: int = 0
    in_flight_samples: int = 0
    last_step: int = -1  # launched last with it in the plan
    scored: list[TokenLogprobs] = field(default_factory=list)  # of the prompt, as asked for
    drafting: Drafting | None = None  # where it may have drafts

    # For metrics.
    cached_tokens: int = 0  # prefix hit at first admission
    counted_prompt: int = 0  # prompt tokens already in the counter
    scheduled_time: float | None = None
    first_token_time: float | None = None

    @classmethod
    def from_message(
        cls,
        message: AddRequest,
        *,
        client: bytes,
        req_id: int,
        seed: int,
        eos_token_ids: tuple[int, ...],
        rope_switch: int | None = None,
        pools_all: bool = False,
        adapter_name: str | None = None,
    ) -> Request:
        """``seed`` is used when the message has none. Prompts longer than ``rope_switch`` share no pages with
        shorter ones: their keys are rotated otherwise. ``pools_all``: a pooling request needs each position's
        hidden state."""
        sampling = message.sampling
        if message.pooling is not None:  # scheduled like one whose first token is its last
            sampling = msgspec.structs.replace(sampling, max_tokens=1)
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=seed)
        stop_ids = frozenset(sampling.stop_token_ids)
        long = rope_switch is not None and len(message.prompt_token_ids) > rope_switch
        rope = "long" if long else None
        lora = None if message.adapter is None else str(message.adapter)
        return cls(
            req_id=req_id,
            client=client,
            request_id=message.request_id,
            token_ids=list(message.prompt_token_ids),
            num_prompt_tokens=len(message.prompt_token_ids),
            sampling=sampling,
            stop_ids=stop_ids if sampling.ignore_eos else stop_ids.union(eos_token_ids),
            arrival_time=message.arrival_time,
            priority=message.priority,
            rank=rank(message.arrival_time, message.priority, req_id),
            deadline=None if message.timeout is None else message.arrival_time + message.timeout,
            extras=_words(message.cache_salt, rope, lora),
            root=root_digest(cache_salt=message.cache_salt, lora_id=lora, rope=rope),
            adapter=message.adapter,
            adapter_name=adapter_name,
            pooling=message.pooling,
            pools_all=pools_all and message.pooling is not None,
        )

    @property
    def tables(self) -> BlockTables:
        """Its pages; it runs."""
        assert self.held is not None
        return self.held

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def final_length(self) -> int:
        """Positions that are ever computed: the last output token is not."""
        return self.num_prompt_tokens + self.sampling.max_tokens - 1

    @property
    def num_to_compute(self) -> int:
        """Tokens that could be launched now: those that exist, here or on the device, and were not yet."""
        known = len(self.token_ids) + self.in_flight_samples
        return min(known, self.final_length) - self.computed - self.in_flight

    def drafts_within(self, most: int) -> int:
        """How many drafts, of ``most``, the next step may have of it: none is computed that cannot be wanted,
        and end tokens are kept away from all samples of a step or from none."""
        room = self.final_length - len(self.token_ids)
        if (early := self.sampling.min_tokens - self.num_output_tokens) > 0:
            room = min(room, early - 1)
        return max(0, min(most, room))

    def append(self, token_ids: list[int]) -> tuple[list[int], FinishReason | None, int | None]:
        """Commit sampled tokens up to the one that ends the request.

        Returns those taken, why it ends (None: it goes on) and the stop id, if that is why.
        """
        for count, token_id in enumerate(token_ids, 1):
            # With a grammar the mask keeps end tokens away, unless nothing else is left.
            few = self.num_output_tokens < self.sampling.min_tokens
            may_stop = not few or self.sampling.grammar is not None
            self.token_ids.append(token_id)
            if may_stop and token_id in self.stop_ids:
                return token_ids[:count], "stop", token_id
            if self.num_output_tokens >= self.sampling.max_tokens:
                return token_ids[:count], "length", None
        return token_ids, None, None

    @property
    def must_score(self) -> bool:
        """Whether the log-probabilities of the prompt are still to be told."""
        return self.sampling.prompt_logprobs is not None and self.num_output_tokens == 0

    @property
    def must_compute_all(self) -> bool:
        """Whether each position has to be computed, though its keys and values may be in the cache."""
        return self.must_score or self.pools_all

    @property
    def worker_sampling(self) -> SamplingParams:
        """What a worker has to know that meets the request now: a prompt is scored once, and what a grammar
        allows comes as masks."""
        sampling = self.sampling
        if sampling.grammar is not None:
            sampling = msgspec.structs.replace(sampling, grammar=None, min_tokens=0)
        if sampling.prompt_logprobs is None or self.must_score:
            return sampling
        return msgspec.structs.replace(sampling, prompt_logprobs=None)

    @property
    def must_wait(self) -> bool:
        """For another request to compute the prompt that both have. That one goes on: it ranks first."""
        first = self.after
        if first is not None and first.status is not Status.ENDED:
            return first.num_output_tokens == 0 and first.computed < first.num_prompt_tokens
        return False

    def count_prompt(self) -> int:
        """Prompt tokens computed since the last call; each counts once, however often preemption makes
        it run."""
        before = self.counted_prompt
        self.counted_prompt = max(before, min(self.computed, self.num_prompt_tokens))
        return self.counted_prompt - before

    def reset(self) -> None:
        """Back to a request that has computed nothing; what is under way becomes void."""
        self.epoch += 1
        self.held = None
        if self.num_output_tokens == 0:
            self.scored = []
        self.computed = self.in_flight = self.in_flight_samples = 0


def _words(salt: str | None, rope: str | None, lora: str | None) -> tuple[str, ...]:
    tagged = (f"{tag}:{value}" for tag, value in (("rope", rope), ("lora", lora)) if value is not None)
    return ((salt,) if salt else ()) + tuple(tagged)


def derive_seed(engine_seed: int, counter: int) -> int:
    """The seed of a request that brought none: the same for the n-th request of every run of an engine."""
    digest = blake2b(b"%d:%d" % (engine_seed, counter), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # fits a signed 64-bit integer
