"""Rolling all models to the present default image at a pace, if the operator is set to."""

from __future__ import annotations

from collections.abc import Callable

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.desired.actions import Plan
from sheaf_operator.desired.updates import Key, State, next_up, state_of
from sheaf_operator.settings import Settings

LOOK = 5.0  # seconds between two looks at whether it is a model's turn


class Updates:
    def __init__(self, settings: Settings, clock: Callable[[], float], keys: Callable[[], list[Key]]) -> None:
        self._rolling = settings.image_updates == "Rolling"
        self._at_once, self._interval = settings.image_updates_at_once, settings.image_updates_interval
        self._clock, self._keys = clock, keys
        self._states: dict[Key, State] = {}
        self._next_start = float("-inf")

    def turn(self, key: Key) -> bool:
        """Whether this model is to take up the present default image now."""
        if not self._rolling or self._clock() < self._next_start:
            return False
        if next_up(self._states, self._keys(), self._at_once) != key:
            return False
        self._next_start = self._clock() + self._interval
        return True

    def note(self, key: Key, spec: LLMDeploymentSpec, observed: Observed, plan: Plan) -> float:
        """How far a model is. Returns in how many seconds it should be looked at again for this."""
        if not self._rolling:
            return float("inf")
        self._states[key] = state = state_of(spec, observed, plan)
        return LOOK if state in ("Outdated", "Updating") else float("inf")

    def forget(self, key: Key) -> None:
        self._states.pop(key, None)
