"""An executor that computes nothing and checks everything.

It is a worker's mirror of the requests plus one cell per KV slot, in which "computing" a token stores the
hash of the exact token prefix up to it. A token is sampled from what attention would read: the
cells of the whole context through the block tables. So a wrong table, a page written by two, a page given
away too early, a wrong prefix hit or a lost token changes a hash and fails at once.

Steps run when they are collected, as on a device that is slower than the host. Pages that a launched step
names must not be given to anybody until it is collected.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.plan import KVGroup, PooledVector, SampledTokens, Scheduled, StepPlan, StepResult

FULL = KVGroup(kind="full", layers=(0,), page_bytes=1)


def prefix_hash(parent: int, token: int) -> int:
    return hash((parent, token, "prefix"))


def first_read(group: KVGroup, position: int) -> int:
    """The first position that the token at ``position`` attends to."""
    if group.chunk is not None:
        return position - position % group.chunk
    return 0 if group.window is None else max(0, position - group.window + 1)


def sample(context_hash: int, sampling: SamplingParams, position: int, vocab_size: int) -> int:
    return hash((context_hash, sampling.seed, position)) % vocab_size


def pooled_hash(context_hash: int) -> bytes:
    return context_hash.to_bytes(8, "little", signed=True)


def expected_vector(prompt: list[int], *, salt: int = 0) -> bytes:
    for token in prompt:
        salt = prefix_hash(salt, token)
    return pooled_hash(salt)


def expected_output(
    prompt: list[int], sampling: SamplingParams, *, vocab_size: int, eos: tuple[int, ...] = (), salt: int = 0
) -> list[int]:
    """What the engine must produce, by the definition and nothing else."""
    h = salt
    for token in prompt:
        h = prefix_hash(h, token)
    stop = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(eos))
    output: list[int] = []
    while len(output) < sampling.max_tokens:
        token = sample(h, sampling, len(output), vocab_size)
        output.append(token)
        if token in stop and len(output) > sampling.min_tokens:
            break
        h = prefix_hash(h, token)
    return output


@dataclass(frozen=True)
class Info:
    vocab_size: int = 97
    max_model_len: int = 1 << 20
    eos_token_ids: tuple[int, ...] = (2,)
    rope_switch: int | None = None
    weights_bytes: int = 0
    kv_groups: tuple[KVGroup, ...] = (FULL,)
    num_blocks: int = 64
    generates: bool = True
    pooled_size: int | None = 8
    pools_all: bool = False
    dtype: str = "float32"
    device: str = "cpu"


@dataclass
class Mirror:
    epoch: int
    token_ids: list[int]
    num_prompt: int
    sampling: SamplingParams
    tables: list[list[int]]
    computed: int
    pooling: PoolingParams | None = None


@dataclass
class CheckedExecutor:
    """``salts`` gives a request's context hash a start of its own (keyed by its seed), so that pages shared
    between different cache salts are noticed."""

    info: Info
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    salts: dict[int, int] = field(default_factory=dict)
    seconds: Callable[[StepPlan], float] | None = None  # that a step is said to have taken

    def __post_init__(self) -> None:
        self.rows: dict[int, Mirror] = {}
        # cell = (prefix hash, position)
        self.cells: list[dict[tuple[int, int], tuple[int, int]]] = [{} for _ in self.info.kv_groups]
        self.launched: deque[tuple[StepPlan, bool]] = deque()
        self.tables_at_launch: dict[int, list[list[int]]] = {}
        self.named: deque[set[int]] = deque()  # pages named by each launched step
        self.steps: list[StepPlan] = []
        self.last_step = -1

    # --- Executor -----------------------------------------------------------------------------------------

    def launch(self, plan: StepPlan) -> None:
        assert plan.step == self.last_step + 1
        self.last_step = plan.step
        self._check_pages(plan)
        drafted = {s.req_id for other, _ in self.launched for s in other.scheduled if s.draft_token_ids}
        assert drafted.isdisjoint(s.req_id for s in plan.scheduled), "planned before its drafts are judged"
        self.launched.append((plan, False))
        self.steps.append(plan)

    def sample(self, masks: TokenMasks | None = None) -> None:
        plan, sampled = self.launched.pop()
        assert not sampled
        self.launched.append((plan, True))

    def collect(self) -> StepResult:
        plan, sampled = self.launched.popleft()
        assert sampled
        self.named.popleft()
        sampled, pooled = self._run(plan)
        seconds = None if self.seconds is None else self.seconds(plan)
        return StepResult(step=plan.step, sampled=sampled, pooled=pooled, seconds=seconds)

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _check_pages(self, plan: StepPlan) -> None:
        tables, size = self.tables_at_launch, self.block_size
        for req_id in plan.ended:
            del tables[req_id]
        fresh = [page for s in plan.scheduled for ids in s.new_block_ids for page in ids]
        for new in plan.new:
            part = [
                t[new.num_computed_tokens // size] for t in new.block_ids if new.num_computed_tokens % size
            ]
            assert [to for _, to in new.copied_pages] == part, "a page of which a part is a hit is a copy"
            tables[new.req_id] = [list(t) for t in new.block_ids]
            fresh += [page for t in new.block_ids for page in t[new.num_computed_tokens // size :]]
        assert len(fresh) == len(set(fresh)), "one page is given out twice"
        assert 0 not in fresh
        assert all(not named.intersection(fresh) for named in self.named), "a page in use is given away"
        named = set()
        for item in plan.scheduled:
            for group, kv in enumerate(self.info.kv_groups):
                table = tables[item.req_id][group]
                table += item.new_block_ids[group]
                named.update(table[first_read(kv, item.start) // size :])
        self.named.append(named)

    # --- the "device" -------------------------------------------------------------------------------------

    def _run(self, plan: StepPlan) -> tuple[list[SampledTokens], list[PooledVector]]:
        for req_id in plan.ended:
            del self.rows[req_id]
        for new in plan.new:
            assert new.req_id not in self.rows
            assert new.sampling.seed is not None
            assert new.num_computed_tokens < len(new.token_ids)
            for group, (source, target) in enumerate(new.copied_pages):
                for slot in range(self.block_size):
                    self.cells[group][target, slot] = self.cells[group].get((source, slot), (0, -1))
            self.rows[new.req_id] = Mirror(
                new.epoch,
                list(new.token_ids),
                new.num_prompt_tokens,
                new.sampling,
                [list(t) for t in new.block_ids],
                new.num_computed_tokens,
                new.pooling,
            )
            if new.pooling is not None and self.info.pools_all:
                assert new.num_computed_tokens == 0, "a position whose hidden state is needed is skipped"
        assert len(self.rows) <= self.max_num_seqs
        assert sum(s.num_tokens for s in plan.scheduled) <= self.max_num_batched_tokens
        assert len({s.req_id for s in plan.scheduled}) == len(plan.scheduled)

        for item in plan.scheduled:
            for table, ids in zip(self.rows[item.req_id].tables, item.new_block_ids, strict=True):
                table += ids
        holders = Counter(
            page
            for row in self.rows.values()
            for kv, table in zip(self.info.kv_groups, row.tables, strict=True)
            for page in table[first_read(kv, row.computed) // self.block_size :]
        )
        writes: list[set[tuple[int, int]]] = [set() for _ in self.info.kv_groups]
        sampled, pooled = [], []
        for item in plan.scheduled:
            row = self.rows[item.req_id]
            assert row.epoch == item.epoch
            assert item.start == row.computed, "tokens are computed in order, each once"
            assert item.num_tokens > 0
            end = item.start + item.num_tokens
            known = end - len(item.draft_token_ids)
            assert known <= len(row.token_ids), "a token is computed that does not exist"
            assert known > item.start, "drafts follow the request's last token"
            assert end <= row.num_prompt + row.sampling.max_tokens - 1, "more tokens than could be wanted"
            assert item.sample == (known == len(row.token_ids))
            if item.draft_token_ids:
                tokens = self._judge(row, item, known, writes, holders)
                sampled.append(SampledTokens(req_id=item.req_id, epoch=item.epoch, token_ids=tokens))
                continue
            h = self._write(row, item.start, end, writes, holders)
            row.computed = end
            if item.sample and row.pooling is not None:
                made = PooledVector(req_id=item.req_id, epoch=item.epoch, vector=pooled_hash(h))
                pooled.append(made)
            elif item.sample:
                position = len(row.token_ids) - row.num_prompt
                token = sample(h, row.sampling, position, self.info.vocab_size)
                row.token_ids.append(token)
                sampled.append(SampledTokens(req_id=item.req_id, epoch=item.epoch, token_ids=[token]))
        return sampled, pooled

    def _judge(
        self,
        row: Mirror,
        item: Scheduled,
        known: int,
        writes: list[set[tuple[int, int]]],
        holders: Counter[int],
    ) -> list[int]:
        """Compute a request's last token and its drafts; what is left of them is what was sampled."""
        assert item.sample
        assert known == item.start + 1, "drafts belong to single tokens"
        row.token_ids += item.draft_token_ids
        made: list[int] = []
        for position in range(item.start, item.start + item.num_tokens):
            h = self._write(row, position, position + 1, writes, holders)
            made.append(sample(h, row.sampling, position + 1 - row.num_prompt, self.info.vocab_size))
        came = 0
        while came < len(item.draft_token_ids) and made[came] == item.draft_token_ids[came]:
            came += 1
        row.token_ids[known:] = made[: came + 1]
        row.computed = known + came
        return made[: came + 1]

    def _write(
        self, row: Mirror, start: int, end: int, writes: list[set[tuple[int, int]]], holders: Counter[int]
    ) -> int:
        """Store the cells of positions [start, end) in each group, reading the context back from them."""
        size = self.block_size
        h = 0
        for group, kv in enumerate(self.info.kv_groups):
            table, cells = row.tables[group], self.cells[group]
            for position in range(start, end):
                lowest = first_read(kv, position)
                h = self._true_hash(row, lowest)
                for p in range(lowest, position):
                    h = prefix_hash(h, row.token_ids[p])
                    page = table[p // size]
                    assert page != 0, f"position {p} has no page"
                    assert cells.get((page, p % size)) == (h, p), f"wrong context at position {p}"
                h = prefix_hash(h, row.token_ids[position])
                slot = (table[position // size], position % size)
                assert slot[0] != 0
                assert holders[slot[0]] == 1, "a shared page is written"
                assert slot not in writes[group], "two requests write one slot in one step"
                for other in range(len(self.info.kv_groups)):  # groups share the pool's pages
                    if other != group:
                        assert slot not in writes[other]
                        self.cells[other].pop(slot, None)
                writes[group].add(slot)
                cells[slot] = (h, position)
        return h

    def _true_hash(self, row: Mirror, length: int) -> int:
        assert row.sampling.seed is not None
        h = self.salts.get(row.sampling.seed, 0)
        for token in row.token_ids[:length]:
            h = prefix_hash(h, token)
        return h
