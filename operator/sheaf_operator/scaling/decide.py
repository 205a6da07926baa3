"""How many replicas, and why. Pure: no clock, no I/O.

Two signals, the higher one wins:

QueueDepth. Let L be the requests in the replicas that answer, waiting and running, c what one replica runs
at once, t the target (waiting requests per replica). More replicas are wanted when L exceeds n(c+t), fewer
when L fits into the running slots of fewer with a tenth to spare, L ≤ 0.9·c·(n−1). In between nothing
changes, so a constant load cannot make the count swing. c is the runtime's limit on running sequences, or
what a replica runs beside requests that have been waiting for a while, if that is less.
Replicas that are busy reading prompts have slots free and are full all the same. So fewer of them are wanted
only if what arrives also fits the rate at which they were seen to take requests in, again with a tenth to
spare (demand.py).
Under a load that grows while replicas start, L/(c+t) would want the whole backlog to run at once. So once it
is known that λ requests per second of s seconds each arrive (demand.py), no more are wanted than run what
arrives and drain the W waiting ones within D = 600 s, n = ceil((λ + W/D)·s/c), or one more than answer if
those do not shrink the queue.

KVCacheUtilizationPercent. Let U be the sum of the replicas' utilizations and τ the target: n = ceil(U/τ),
with HPA's tolerance of a tenth on either side; above the target it is half of what is left to 1 if that is
less, so that a full cache always exceeds it.

n counts the wanted replicas, those that still load included: what is coming is not asked for again. A
replica that is or was ready and gave no sample counts nothing towards more, and forbids less. Scale-down
takes the highest recommendation of the stabilization window, as HPA does; a fresh history begins with the
present count, so nothing shrinks within the first window after a restart, nor after a pause longer than it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sheaf_operator.api.autoscaling import Autoscaling
from sheaf_operator.api.quantity import human_replicas
from sheaf_operator.scaling import behavior, signals
from sheaf_operator.scaling.behavior import Change, Recommendation
from sheaf_operator.scaling.demand import Demand
from sheaf_operator.scaling.policy import Policy
from sheaf_operator.scaling.samples import Samples
from sheaf_operator.scaling.signals import Signal


@dataclass(frozen=True)
class History:
    """Past wishes, which `decide` keeps, and past changes, which the caller reports with `applied`."""

    recommendations: tuple[Recommendation, ...] = ()
    changes: tuple[Change, ...] = ()
    demand: Demand = field(default_factory=Demand)

    def applied(self, now: float, before: int, after: int) -> History:
        """The count has really been changed: what the rate policies count."""
        return replace(self, changes=(*self.changes, Change(now, before, after)))


@dataclass(frozen=True)
class Decision:
    """`limiting` names the signal or bound that set `desired`; `next_change_after` when a waiting wish may
    act.
    """

    desired: int
    raw: int
    limiting: str
    reason: str
    signals: tuple[Signal, ...]
    history: History
    next_change_after: float | None = None


def decide(policy: Policy, samples: Samples, history: History, now: float) -> Decision:
    """The count to have from `now` on. `now` is in seconds of the clock that the history uses."""
    # Bounds are the user's word: they hold at once, whatever the window or the rates say.
    base = min(max(samples.current, policy.minimum), policy.maximum)
    demand = history.demand.observe(now, samples.loads)
    asked = _ask(policy, samples, demand)
    raw, limiting, reason = bounded(policy, *_wish(samples, asked))
    wishes = behavior.remember(policy.up, policy.down, history.recommendations, base, raw, now)
    changes = behavior.still_counted(policy.up, policy.down, history.changes, now)
    desired, next_change = raw, None
    if held := behavior.stabilize(policy.up if raw > base else policy.down, base, wishes, raw):
        desired, words, next_change = held
        limiting, reason = "StabilizationWindow", f"{reason}; {words}"
    limits = policy.up if desired > base else policy.down
    if slowed := behavior.slow_down(limits, base, desired, changes, now):
        desired, words = slowed
        limiting, reason = "RatePolicy", f"{reason}, {words}"
    return Decision(desired, raw, limiting, reason, asked, History(wishes, changes, demand), next_change)


def _ask(policy: Policy, samples: Samples, demand: Demand) -> tuple[Signal, ...]:
    result = []
    if policy.queue_target is not None:
        result.append(signals.queue_depth(policy.queue_target, samples, demand))
    if policy.kv_target is not None:
        result.append(signals.kv_cache(policy.kv_target, samples))
    return tuple(result)


def _wish(samples: Samples, asked: tuple[Signal, ...]) -> tuple[int, str, str]:
    """What the signals ask for before bounds and windows: more beats less, and the highest wins."""
    current = samples.current
    if not samples.loads:
        why = "no replica is ready yet" if samples.missing == 0 else _missing_words(samples)
        return current, "MissingSamples" if samples.missing else "NoReadyReplica", why
    top = max(asked, key=lambda s: s.at_least)
    if top.at_least > current:
        coming = f", {samples.pending} more loading" if samples.pending else ""
        return top.at_least, top.type, f"{top.words}{coming}: {human_replicas(top.at_least)} needed"
    keep = max(asked, key=lambda s: s.at_most)
    if keep.at_most >= current:
        return current, "WithinTargets", f"{keep.words}: {human_replicas(current)} suits"
    if samples.missing:
        return current, "MissingSamples", _missing_words(samples)
    return keep.at_most, keep.type, f"{keep.words}: {human_replicas(keep.at_most)} would do"


def _missing_words(samples: Samples) -> str:
    return f"{human_replicas(samples.missing)} not answering: not scaling down on what is not known"


def bounded(policy: Policy, raw: int, limiting: str, reason: str) -> tuple[int, str, str]:
    """The count within the user's bounds, and what limits it then."""
    if raw > policy.maximum:
        return policy.maximum, "MaxReplicas", f"{reason}, limited by maxReplicas {policy.maximum}"
    if raw < policy.minimum:
        return policy.minimum, "MinReplicas", f"{reason}, but minReplicas is {policy.minimum}"
    return raw, limiting, reason


def restored(decision: Decision, count: int, spec: Autoscaling) -> Decision:
    """Go straight back to the `count` of before instead of finding it again by load."""
    desired = min(count, spec.max_replicas)
    if desired <= decision.desired:
        return decision
    return replace(
        decision,
        desired=desired,
        limiting="Recreated",
        reason=f"the Deployment lost its count, as one made anew does: {desired} replicas were wanted",
    )
