"""Plans that run the shapes which matter once, so that no request pays for first calls."""

from __future__ import annotations

from collections.abc import Iterator

from sheaf_runtime.config import EngineConfig
from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.plan import BlockIds, NewRequest, Scheduled, StepPlan


def warm_up_plans(
    config: EngineConfig, max_model_len: int, num_blocks: int, num_groups: int, *, pooling: bool
) -> Iterator[StepPlan]:
    """The largest prefill chunk, then decode batches of 1, 2, 4 ... requests, greedy and sampled; for a model
    that pools, prompts of one token.

    They use pages from 1 on, whatever is in them, and end every request that they start.
    """
    size, usable = config.block_size, num_blocks - 1
    chunk = min(config.max_num_batched_tokens, max_model_len - 1, usable * size)
    most = min(config.max_num_seqs, usable, config.max_num_batched_tokens)
    batches = [(1, chunk)] + [(n, 1) for n in (*_powers_of_two(most), most)]
    alive: list[int] = []
    for step, (count, tokens) in enumerate(batches):
        pages = -(-tokens // size)
        # The KV groups write the same pages: nobody reads what they hold afterwards.
        new = [
            _request(-1 - i, tokens, [list(range(1 + i * pages, 1 + (i + 1) * pages))] * num_groups, pooling)
            for i in range(count)
        ]
        scheduled = [
            Scheduled(
                req_id=n.req_id,
                epoch=0,
                start=0,
                num_tokens=tokens,
                new_block_ids=[[]] * num_groups,
                sample=True,
            )
            for n in new
        ]
        yield StepPlan(step=step, ended=alive, new=new, scheduled=scheduled)
        alive = [n.req_id for n in new]
    yield StepPlan(step=len(batches), ended=alive, new=[], scheduled=[])


def _powers_of_two(below: int) -> list[int]:
    return [1 << i for i in range(below.bit_length()) if 1 << i < below]


def _request(req_id: int, tokens: int, block_ids: BlockIds, pooling: bool) -> NewRequest:
    sampled = SamplingParams(temperature=1.0, top_p=0.9, seed=0)
    return NewRequest(
        req_id=req_id,
        epoch=0,
        token_ids=[0] * tokens,
        num_prompt_tokens=tokens,
        num_computed_tokens=0,
        sampling=sampled if req_id % 2 else SamplingParams(temperature=0.0, seed=0),
        block_ids=block_ids,
        pooling=PoolingParams() if pooling else None,
    )
