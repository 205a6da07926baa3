"""Some thousand steps of each state machine; ``make soak`` runs a million."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sheaf_runtime.engine.kv_cache import KVCache
from state_machines import CacheMachine, EngineMachine, PoolMachine

TestPool = PoolMachine.TestCase
TestCache = CacheMachine.TestCase
TestEngine = EngineMachine.TestCase
TestPool.settings = TestCache.settings = TestEngine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)


@pytest.mark.parametrize("machine", [CacheMachine, EngineMachine])
def test_pages_that_are_not_given_back_are_noticed(machine, monkeypatch):
    monkeypatch.setattr(KVCache, "release", lambda self, held: None)
    quick = settings(
        max_examples=100,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=quick)
