"""What the log says of an engine that makes no progress."""

from __future__ import annotations

import json
import threading

from checked_executor import FULL, CheckedExecutor, Info
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.state import MOST_REQUESTS, describe, where
from sheaf_runtime.protocol.messages import AddRequest
from sheaf_runtime.protocol.sampling import SamplingParams


def test_the_record_has_requests_pages_and_queue_and_no_text():
    config = EngineConfig(
        model="none", pipeline_depth=1, block_size=4, max_num_seqs=2, max_num_batched_tokens=16
    )
    executor = CheckedExecutor(Info(num_blocks=64, kv_groups=(FULL,)), 4, 2, 16)
    core = EngineCore(executor, config, clock=lambda: 5.0)
    for number in range(MOST_REQUESTS + 5):
        core.add(
            b"c",
            AddRequest(
                request_id=f"r{number}",
                prompt_token_ids=[91, 92, 93],
                sampling=SamplingParams(seed=1, max_tokens=9, ignore_eos=True),
                arrival_time=2.0,
                priority=number,
            ),
        )
    core.step()
    text = describe(core, 5.0)
    assert "\n" not in text
    record = json.loads(text)
    assert record["steps_in_flight"] == 1
    assert record["blocks"] == {"live": 2, "cached": 0, "free": 61}
    assert record["running"]["requests"][0] == {
        "id": "r0",
        "age": 3.0,
        "priority": 0,
        "prompt": 3,
        "output": 0,
        "computed": 0,
        "in_flight": 3,
        "blocks": 1,
        "last_step": 0,
    }
    assert record["waiting"]["count"] == MOST_REQUESTS + 3
    assert len(record["waiting"]["requests"]) == MOST_REQUESTS
    assert "91" not in text


def test_where_a_thread_stands():
    assert "test_where_a_thread_stands" in where(threading.get_ident())
    assert where(0) == "the thread has ended"
