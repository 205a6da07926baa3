"""Others who write what Sheaf writes: repaired a few times, then named, and less and less often undone. Pure.

Two writers who never give way would make a load of their own, and pods come and go with the count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.desired.actions import Action, Apply, Scale
from sheaf_operator.desired.drift import of_object
from sheaf_operator.problems.problem import Problem

OFTEN = 3  # times within MEMORY from which on somebody is named
MEMORY = 3600.0  # seconds that are looked back
FIRST, LONGEST = 10.0, 600.0  # seconds between our writes: doubled each time
COUNT = "count"
ADMISSION = "admission (a mutating webhook or policy)"


@dataclass(frozen=True)
class Fight:
    """What we last wrote of one thing, as a digest, and when others have undone it since. `admission`: it was
    changed on its way in, as the answer to the write showed.
    """

    wrote: str
    last: float
    admission: bool = False
    undone: tuple[float, ...] = ()
    by: str = ""
    where: str = ""

    def recent(self, now: float) -> int:
        return sum(time > now - MEMORY for time in self.undone)

    def rest(self, now: float) -> float:
        """Seconds before it may be written again."""
        times = self.recent(now)
        if times < OFTEN:
            return 0.0
        return max(0.0, self.last + min(LONGEST, FIRST * 2.0 ** (times - OFTEN)) - now)


@dataclass(frozen=True)
class Contest:
    """A fight per object, and one for the Deployment's count."""

    deployment: str | None = None
    fights: Mapping[str, Fight] = field(default_factory=dict)

    def look(self, observed: Observed, actions: tuple[Action, ...], now: float) -> Contest:
        """What others have undone: an object that is to be written as it was before, a count that moved."""
        fights = dict(self.fights)
        for action in actions:
            if isinstance(action, Apply) and (fight := fights.get(_key(action))):
                live = observed.there(action.obj)
                if live is not None and fight.wrote == _digest(action):
                    where = ", ".join(of_object(live, action.obj)[:3])
                    by = ADMISSION if fight.admission else _last_writer(live)
                    fights[_key(action)] = _undone(fight, now, by, where)
        deployment = observed.deployment
        uid = str(deployment["metadata"]["uid"]) if deployment else None
        count = str(observed.replicas)
        known = fights.get(COUNT)
        if deployment is None or uid != self.deployment or known is None or known.last == float("-inf"):
            fights[COUNT] = Fight(count, float("-inf"))  # it is not ours until we have written it
        elif known.wrote != count:
            fights[COUNT] = replace(_undone(known, now, _last_writer(deployment, count=True)), wrote=count)
        return Contest(uid, fights)

    def wrote(self, action: Action, now: float, answer: Json | None = None) -> Contest:
        """An action has been carried out; `answer` is the object as it is then."""
        if isinstance(action, Scale):
            known = self.fights.get(COUNT, Fight("", now))
            mine = replace(known, wrote=str(action.replicas), last=now)
            return replace(self, fights={**self.fights, COUNT: mine})
        if isinstance(action, Apply):
            known = self.fights.get(_key(action), Fight("", now))
            mine = replace(known, last=now) if not _is_new(known, action) else Fight(_digest(action), now)
            mine = replace(mine, admission=bool(answer and of_object(answer, action.obj)))
            return replace(self, fights={**self.fights, _key(action): mine})
        return self

    def rest(self, action: Action, now: float) -> float:
        """Seconds before this may be written, so that nobody is fought for ever."""
        key = COUNT if isinstance(action, Scale) else _key(action) if isinstance(action, Apply) else ""
        fight = self.fights.get(key)
        return fight.rest(now) if fight and not _is_new(fight, action) else 0.0

    def problem(self, now: float) -> Problem | None:
        """Who else writes, once that has happened often."""
        for key, fight in sorted(self.fights.items()):
            if (times := fight.recent(now)) < OFTEN:
                continue
            often = f"{fight.by} has changed it {times} times in the last {MEMORY / 60:.0f} minutes"
            if key == COUNT:
                return Problem("CountContested", f"the Deployment's replicas have a second writer: {often}")
            return Problem("FieldsContested", f"{key} has a second writer ({fight.where}): {often}")
        return None


def _is_new(fight: Fight, action: Action) -> bool:
    """Whether we want something else than before: that is no fight."""
    return isinstance(action, Apply) and fight.wrote != _digest(action)


def _undone(fight: Fight, now: float, by: str, where: str = "") -> Fight:
    recent = tuple(time for time in fight.undone if time > now - MEMORY)
    if recent and recent[-1] >= fight.last:
        return replace(fight, undone=recent)  # seen already, and not written again since
    return replace(fight, undone=(*recent, now), by=by, where=where)


def _key(action: Apply) -> str:
    return f"{action.obj['kind']} {action.obj['metadata']['name']}"


def _digest(action: Apply) -> str:
    return hashlib.sha256(json.dumps(action.obj, sort_keys=True).encode()).hexdigest()


def _last_writer(obj: Json, count: bool = False) -> str:
    """The field manager, other than ours, that wrote last; `count`: of those that wrote the count."""
    entries = [
        entry
        for entry in obj["metadata"].get("managedFields", [])
        if entry.get("manager") != names.FIELD_MANAGER
        and entry.get("subresource") != "status"
        and (not count or "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {}))
    ]
    if not entries:
        return "somebody"
    last = max(entries, key=lambda entry: str(entry.get("time", "")))
    through = f" (through /{last['subresource']})" if last.get("subresource") else ""
    return f"field manager {last['manager']}{through}"
