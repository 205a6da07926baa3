"""The cost of a step, learnt: from clean, disturbed and changing machines."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_runtime.engine.cost_model import CostModel, StepWork, pairs

# Seconds for each of: the step, a prompt token, a decode, a position a decode reads, a pair of a prompt's.
MACHINE = (0.036, 1.15e-3, 0.6e-3, 4e-6, 0.6e-6)


def true_seconds(work, machine=MACHINE):
    row = (1, work.prompt_tokens, work.decodes, work.decode_context, work.prompt_pairs)
    return sum(c * x for c, x in zip(machine, row, strict=True))


def some_work(r: Random, prompts: bool) -> StepWork:
    work = StepWork()
    for _ in range(r.randint(1, 16)):
        work.add(r.randint(8, 2000), 1)
    if prompts:
        for _ in range(r.randint(1, 3)):
            work.add(r.randint(0, 2000), r.randint(2, 300))
    return work


def mixed(r: Random, count: int) -> list[StepWork]:
    return [some_work(r, r.random() < 0.5) for _ in range(count)]


def worst_error(model: CostModel, works, machine=MACHINE) -> float:
    return max(abs(model.predict(w) / true_seconds(w, machine) - 1) for w in works)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    machine=st.tuples(
        st.floats(1e-4, 0.1),
        st.floats(1e-6, 0.01),
        st.floats(0, 1e-3),
        st.floats(0, 1e-5),
        st.floats(0, 1e-5),
    ),
)
def test_a_quiet_machine_is_foreseen(seed, machine):
    r, model = Random(seed), CostModel()
    for work in mixed(r, 150):
        model.observe(work, true_seconds(work, machine))
    assert min(model.coefficients.values()) >= 0
    assert worst_error(model, mixed(r, 50), machine) < 0.03


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_compilation_and_disturbed_steps_move_little(seed):
    r, model = Random(seed), CostModel()
    for number, work in enumerate(mixed(r, 200)):
        slow = 100 if number == 0 else r.choice([1] * 19 + [8])
        model.observe(work, true_seconds(work) * slow * r.uniform(0.95, 1.05))
    assert worst_error(model, mixed(r, 50)) < 0.25


def test_a_machine_that_changed_is_believed_within_two_hundred_steps():
    r, model = Random(1), CostModel()
    for work in mixed(r, 300):
        model.observe(work, true_seconds(work))
    for work in mixed(r, 200):
        model.observe(work, 2 * true_seconds(work))
    assert worst_error(model, mixed(r, 50), tuple(2 * c for c in MACHINE)) < 0.2


def test_hours_of_chats_do_not_make_the_cost_of_prompts_forgotten():
    r, model = Random(2), CostModel()
    for work in mixed(r, 200):
        model.observe(work, true_seconds(work))
    for _ in range(5000):
        work = some_work(r, prompts=False)
        model.observe(work, true_seconds(work) * r.uniform(0.97, 1.03))
    assert model.prompt_seconds(0, 256) == pytest.approx(
        256 * MACHINE[1] + pairs(0, 256) * MACHINE[4], rel=0.05
    )


@settings(max_examples=300, deadline=None)
@given(
    token=st.floats(0, 0.01),
    pair=st.floats(0, 1e-5),
    seconds=st.floats(-1, 10),
    start=st.integers(0, 100_000),
    most=st.integers(0, 8192),
)
def test_the_inverse_is_exact(token, pair, seconds, start, most):
    model = CostModel()
    model._coefficients = [0.0, token, 0.0, 0.0, pair, 0.0]
    count = model.prompt_tokens_within(seconds, start, most)
    assert 0 <= count <= most
    if not model.known:
        return
    assert count == 0 or model.prompt_seconds(start, count) <= seconds
    assert count == most or seconds <= 0 or model.prompt_seconds(start, count + 1) > seconds * (1 - 1e-9)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_duration_is_ignored(seconds):
    model, work = CostModel(), StepWork()
    work.add(0, 5)
    model.observe(work, seconds)
    assert not model.known
    assert model.prompt_tokens_within(0.0, 0, 512) == 512, "nothing is known: nothing is held back"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(1, 10**4), st.floats(1e-9, 1e6)), min_size=1, max_size=60
    )
)
def test_whatever_is_measured_the_model_stays_finite_and_nonnegative(steps):
    model = CostModel()
    for start, num_tokens, seconds in steps:
        work = StepWork()
        work.add(start, num_tokens)
        model.observe(work, seconds)
        assert all(0 <= c < 1e12 for c in model.coefficients.values())
