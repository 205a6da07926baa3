"""Any order of calls to the block pool, to the block tables with the prefix cache, and to the engine core.

Each is a Hypothesis state machine beside a model of its own; ``run_steps`` runs one for as many steps as
asked, from a seed, and the tests run a few hundred of each.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import hypothesis
from checked_executor import CheckedExecutor, Info, expected_output, expected_vector, first_read
from engine_jobs import GROUPS, Job, random_message
from foreseen import Foreseen
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sheaf_runtime.config import EngineConfig, SpeculativeConfig
from sheaf_runtime.engine.blocks import NULL_BLOCK, BlockPool
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.kv_cache import BlockTables, KVCache
from sheaf_runtime.engine.prefix import root_digest
from sheaf_runtime.protocol.messages import Accepted

PER_EXAMPLE = 100  # steps before a machine begins anew
SEEDS = st.integers(0, 2**32)  # Hypothesis' own draws lean to small cases, in which nobody gets in the way


class Counted(RuleBasedStateMachine):
    """``steps`` of all instances of a class together."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).steps -= 1  # invariants are also checked before the first step

    @invariant()
    def count(self) -> None:
        type(self).steps += 1


def run_steps(machine: type[Counted], steps: int, seed: int) -> int:
    """How many steps were run, at least ``steps``; a broken promise raises, shrunk to few steps."""
    machine.steps = 0
    turn = 0
    while machine.steps < steps:
        hypothesis.seed(seed + turn)(machine)
        examples = max(1, min(1000, (steps - machine.steps) // PER_EXAMPLE))
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=PER_EXAMPLE,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        turn += 1
    return machine.steps


class PoolMachine(Counted):
    """``BlockPool`` beside plain dictionaries."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.refs: dict[int, int] = {}
        self.keys: dict[bytes, int] = {}

    @rule(target=tables, count=st.integers(0, 5))
    def allocate(self, count: int) -> list[int]:
        ids = self.pool.allocate(min(count, self.pool.num_available))
        for page in ids:
            assert self.refs.get(page, 0) == 0
            self.refs[page] = 1
            self.keys = {k: p for k, p in self.keys.items() if p != page}
        return ids

    @rule(table=consumes(tables))
    def free(self, table: list[int]) -> None:
        self.pool.free(table)
        for page in table:
            self.refs[page] -= 1

    @rule(table=tables, key=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def publish(self, table: list[int], key: bytes) -> None:
        if table:
            self.pool.publish(table[0], key)
            if key not in self.keys and table[0] not in self.keys.values():
                self.keys[key] = table[0]

    @precondition(lambda self: self.keys)
    @rule(target=tables, data=st.data())
    def touch(self, data: st.DataObject) -> list[int]:
        page = self.pool.lookup(data.draw(st.sampled_from(sorted(self.keys))))
        assert page is not None
        self.pool.touch([page])
        self.refs[page] += 1
        return [page]

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        self.keys.clear()

    @invariant()
    def agrees_with_the_model(self) -> None:
        pool = self.pool
        pool.check_integrity()
        live = {p for p, n in self.refs.items() if n}
        assert pool.num_live == len(live)
        assert pool.num_live + pool.num_cached + pool.num_free == pool.num_total
        assert pool.num_cached == sum(p not in live for p in self.keys.values())
        assert all(pool.lookup(k) == p for k, p in self.keys.items())
        assert all(pool.ref_count(p) == n for p, n in self.refs.items())


class Holder:
    """A request as the block tables see it."""

    def __init__(self, tokens: list[int], salt: str | None, held: BlockTables, computed: int) -> None:
        self.tokens, self.salt, self.held, self.computed = tokens, salt, held, computed
        self.root = root_digest(cache_salt=salt)


class CacheMachine(Counted):
    """``KVCache`` beside a record of what each page holds: the tokens up to its end, all of them."""

    holders = Bundle("holders")
    CHUNK = 6

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        r = Random(seed)
        self.groups, self.size = r.choice(GROUPS), r.choice([1, 2, 4])
        self.kv = KVCache(
            self.groups,
            num_blocks=1 + r.randint(4, 60),
            block_size=self.size,
            prefix_caching=True,
            max_in_flight_tokens=self.CHUNK,
            copy_pages=r.random() < 0.7,
        )
        self.stem = [r.randrange(97) for _ in range(40)]
        self.held: list[Holder] = []
        self.contents: dict[int, tuple[int, str | None, tuple[int, ...]]] = {}

    @rule(target=holders, seed=SEEDS)
    def admit(self, seed: int) -> Holder | None:
        r = Random(seed)
        tokens = self.stem[: r.randint(0, 40)] + [r.randrange(97) for _ in range(r.randint(1, 6))]
        salt = r.choice([None, None, "x"])
        hit = self.kv.find_hit(tokens, root_digest(cache_salt=salt), [])
        computed = self.kv.hit_tokens(hit)
        assert computed < len(tokens)
        assert hit.num_copied < self.size
        for group, page in enumerate(hit.sources):
            assert self.contents[page][:2] == (group, salt)
            assert self.contents[page][2][:computed] == tuple(tokens[:computed])
        for group, (kv, table) in enumerate(zip(self.groups, hit.tables, strict=True)):
            first = first_read(kv, hit.num_published * self.size) // self.size
            for i, page in enumerate(table):
                if i >= first:  # the next token sees it
                    assert self.contents[page] == (group, salt, tuple(tokens[: (i + 1) * self.size]))
                else:
                    assert page == NULL_BLOCK
        if self.kv.pages_to_admit(hit, len(tokens)) > self.kv.pool.num_available:
            return None
        self.kv.take(hit)
        holder = Holder(tokens, salt, hit, computed)
        self.held.append(holder)
        return holder

    @rule(holder=holders, count=st.integers(1, CHUNK), token=st.integers(0, 96))
    def compute(self, holder: Holder | None, count: int, token: int) -> None:
        """What a step does: slots, what is computed can be found, what nobody sees is given back."""
        if holder is None or holder not in self.held:
            return
        if holder.computed == len(holder.tokens):
            holder.tokens.append(token)
        end = min(holder.computed + count, len(holder.tokens))
        available = self.kv.pool.num_available
        new = self.kv.grow(holder.held, end)
        if new is None:
            assert self.kv.pool.num_available == available, "what fails takes nothing"
            return
        for page in (page for ids in new for page in ids):
            self.contents.pop(page, None)
        for group, table in enumerate(holder.held.tables):
            for i in range(holder.computed // self.size, end // self.size):
                self.contents[table[i]] = (group, holder.salt, tuple(holder.tokens[: (i + 1) * self.size]))
            if end % self.size:
                self.contents[table[-1]] = (group, holder.salt, tuple(holder.tokens[:end]))
        holder.computed = end
        self.kv.publish(holder.held, holder.tokens, holder.root, end)
        self.kv.trim(holder.held, end)

    @rule(holder=consumes(holders))
    def release(self, holder: Holder | None) -> None:
        if holder in self.held:
            if holder.computed <= len(holder.held.tables[-1]) * self.size:  # else it was never to be computed
                self.kv.publish_rest(holder.held, holder.tokens, holder.root, holder.computed)
            self.kv.release(holder.held)
            self.held.remove(holder)

    @rule()
    def forget(self) -> None:
        self.kv.forget()
        assert self.kv.pool.num_cached == 0

    @invariant()
    def every_page_has_its_holders(self) -> None:
        if not hasattr(self, "kv"):
            return
        pool = self.kv.pool
        pool.check_integrity()
        refs: Counter[int] = Counter()
        for holder in self.held:
            held = holder.held
            refs.update(page for table in held.tables for page in table if page != NULL_BLOCK)
            assert held.num_held <= self.kv.num_pages(len(holder.tokens))
            for group, (kv, table) in enumerate(zip(self.groups, held.tables, strict=True)):
                first = first_read(kv, holder.computed) // self.size
                assert set(table[:first]) <= {NULL_BLOCK}, "what no later token sees is not given back"
                for i in range(first, holder.computed // self.size):
                    wanted = (group, holder.salt, tuple(holder.tokens[: (i + 1) * self.size]))
                    assert self.contents[table[i]] == wanted, "a page that the next token sees"
        assert pool.num_live == len(refs)
        assert all(pool.ref_count(page) == count for page, count in refs.items())
        assert pool.num_live + pool.num_cached + pool.num_free == pool.num_total

    def teardown(self) -> None:
        for holder in getattr(self, "held", []):
            self.kv.release(holder.held)
        if hasattr(self, "kv"):
            assert self.kv.pool.num_live == 0, "pages leaked"
            self.kv.pool.check_integrity()


class EngineMachine(Counted):
    """``EngineCore`` with its scheduler on a device that checks each plan and computes hashes. In the end
    everything that was accepted ends, with the tokens that its prompt and its seed define."""

    TURNS = 5000  # at most, to end what is there

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        r = Random(seed)
        groups, size, seats = r.choice(GROUPS), r.choice([1, 2, 4]), r.choice([1, 2, 4, 8])
        budget = max(seats, r.choice([1, 3, 8, 16, 40]))
        config = EngineConfig(
            model="none",
            block_size=size,
            max_num_seqs=seats,
            max_num_batched_tokens=budget,
            max_waiting_requests=r.choice([2, 1024]),
            long_prefill_token_threshold=r.choice([0, 0, 1, 4]),
            max_num_partial_prefills=r.choice([1, 1, 2, 3]),
            target_ttft_ms=r.choice([None, None, 100.0]),
            target_inter_token_ms=r.choice([None, None, 1e-3, 5.0, 40.0]),
            enable_prefix_caching=r.random() < 0.8,
            pipeline_depth=r.choice([0, 1]),
            speculative_config=r.choice(
                [None, SpeculativeConfig(method="ngram", num_speculative_tokens=r.randint(1, 6))]
            ),
        )
        self.info = Info(
            num_blocks=1 + r.randint(8, 40) * len(groups), kv_groups=groups, max_model_len=60, pools_all=False
        )
        self.executor = CheckedExecutor(self.info, size, seats, budget)
        self.now = 0.0
        self.core = EngineCore(self.executor, config, clock=lambda: self.now)
        self.stem = [r.randrange(97) for _ in range(20)]
        self.jobs: dict[str, Job] = {}
        self.open: list[str] = []
        self.answers: list[list[int]] = []  # what each request gets, behind its prompt
        if (speculation := self.core.scheduler.speculation) is not None:
            speculation.make_proposer = lambda: Foreseen(self.answers, r.random(), r)

    @precondition(lambda self: len(self.open) < 12)
    @rule(seed=SEEDS)
    def add(self, seed: int) -> None:
        r, number = Random(seed), len(self.jobs)
        message = random_message(r, number, self.now, self.stem, grows=r.random() < 0.3)
        salt = hash(root_digest(cache_salt=message.cache_salt))
        self.executor.salts[number] = salt
        expected = expected_output(message.prompt_token_ids, message.sampling, vocab_size=97, salt=salt)
        self.answers.append(message.prompt_token_ids + expected)
        job = Job(message, 0, None)
        job.accepted = isinstance(self.core.add(b"c", message), Accepted)
        self.jobs[message.request_id] = job
        if job.accepted:
            self.open.append(message.request_id)

    @precondition(lambda self: len(self.open) > 3)
    @rule(seed=SEEDS)
    def abort(self, seed: int) -> None:
        gone = [Random(seed).choice(self.open)]
        self.core.abort(b"c", [*gone, "nobody"])
        for request_id in gone:
            self.jobs[request_id].aborted = 0
            self.open.remove(request_id)

    @rule(count=st.sampled_from([1, 5, 30]), seconds=st.sampled_from([0.0, 0.01, 1.0]))
    def steps_of_the_engine(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.step(seconds)

    def step(self, seconds: float) -> None:
        self.now += seconds
        for output in self.core.step():
            job = self.jobs[output.request.request_id]
            assert job.reason is None, "output after the end"
            assert job.aborted is None, "output after an abort"
            job.got += output.token_ids
            job.vector = output.pooled
            job.reason = output.finish_reason
            if job.reason is not None:
                self.open.remove(output.request.request_id)
                self.judge(job)
        for request_id in self.open:
            message = self.jobs[request_id].message
            assert message.timeout is None or self.now < message.arrival_time + message.timeout, "too late"

    @rule()
    def forget(self) -> None:
        self.core.reset_prefix_cache()

    @invariant()
    def nothing_leaks(self) -> None:
        if not hasattr(self, "core"):
            return
        self.core.check_integrity()
        stats = self.core.take_stats()
        assert stats.blocks_live + stats.blocks_cached + stats.blocks_free == self.info.num_blocks - 1
        assert self.core.has_requests == bool(self.open)

    def judge(self, job: Job) -> None:
        message = job.message
        assert message.sampling.seed is not None
        salt = self.executor.salts[message.sampling.seed]
        if message.pooling is not None:
            wanted = expected_vector(message.prompt_token_ids, salt=salt)
            assert job.vector == (None if job.reason == "timeout" else wanted)
            return
        expected = expected_output(
            message.prompt_token_ids,
            message.sampling,
            vocab_size=self.info.vocab_size,
            eos=self.info.eos_token_ids,
            salt=salt,
        )
        assert job.got == (expected[: len(job.got)] if job.reason == "timeout" else expected)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(self.TURNS):
            if not self.core.busy:
                break
            self.step(0.01)
        assert not self.core.busy, "a request is stuck"
        assert not self.open
        assert self.core.scheduler.kv.pool.num_live == 0, "pages leaked"
        self.nothing_leaks()


MACHINES: dict[str, type[Counted]] = {
    "block pool": PoolMachine,
    "prefix cache": CacheMachine,
    "scheduler": EngineMachine,
}
