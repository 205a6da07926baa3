"""The soak in short: two rounds on the real server, and what its judges say to damage."""

from __future__ import annotations

from tempfile import TemporaryFile

from soak.catalogue import Lone
from soak.run import SLACK_MIB, memory_problems, soak


def test_two_rounds_leave_nothing_and_every_answer_is_the_lone_one():
    with TemporaryFile() as log:
        result = soak(seed=3, minutes=0, requests=100, clients=28, catalogue=10, tokens=48, log=log)
        log.seek(0)
        assert result["failures"] == [], log.read()[-4000:]
    assert result["rounds"] == 2
    assert result["answers_compared_bitwise"] > 50
    assert result["counters"]["preemptions"] > 0


def test_one_bit_is_a_difference():
    lone = Lone({}, (5, 6, 7), (-0.5, -0.25, -1.0))
    assert lone.broken_by([5, 6], [-0.5, -0.25]) is None
    assert "tokens [5, 7]" in str(lone.broken_by([5, 7], None))
    assert "log-probabilities" in str(lone.broken_by([5], [-0.5000000001]))


def test_memory_that_grows_and_descriptors_that_stay_open_are_told():
    flat = {"api_rss_mib": 100.0, "core_rss_mib": 300.0, "api_descriptors": 20, "core_descriptors": 30}
    assert memory_problems([flat] * 8) == []
    grown = flat | {"core_rss_mib": 301 + SLACK_MIB, "api_descriptors": 25}
    told = memory_problems([*[flat] * 7, grown])
    assert len(told) == 2
    assert told[0].startswith("api: 25 open descriptors")
    assert told[1].startswith("core: 317.0 MiB")
