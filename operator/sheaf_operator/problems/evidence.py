"""Reading what the cluster says: times, Events, and rules that find a reason in a text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from sheaf_operator.cluster.observed import Json, condition

Rules = Sequence[tuple[str, re.Pattern[str]]]  # reason, what its texts look like
BEGINNING = datetime.min.replace(tzinfo=UTC)


def rules(*pairs: tuple[str, str]) -> Rules:
    return [(reason, re.compile(pattern, re.IGNORECASE | re.DOTALL)) for reason, pattern in pairs]


def first(found: Rules, text: str) -> str | None:
    """The reason of the first rule that the whole text fulfils."""
    return next((reason for reason, pattern in found if pattern.search(text)), None)


def moment(text: str | None) -> datetime | None:
    """A time as the API server writes it."""
    return datetime.fromisoformat(text) if text else None


def created(obj: Json) -> datetime | None:
    return moment(obj["metadata"].get("creationTimestamp"))


def turned(obj: Json, kind: str) -> datetime | None:
    """When this condition last changed its status; else when the object was made."""
    return moment((condition(obj, kind) or {}).get("lastTransitionTime")) or created(obj)


def seconds(since: datetime | None, now: datetime) -> float:
    """How long ago; 0 for a time that is not known."""
    return (now - since).total_seconds() if since else 0.0


def newest_first(objects: Iterable[Json]) -> list[Json]:
    return sorted(objects, key=lambda o: str(o["metadata"].get("creationTimestamp", "")), reverse=True)


def warnings(events: Iterable[Json], obj: Json, reasons: Iterable[str] = ()) -> list[Json]:
    """The Warnings about this object, the latest first; of these reasons only if any are given."""
    wanted = set(reasons)
    about = [e for e in events if e.get("type") == "Warning" and e.get("message") and _is_about(e, obj)]
    return sorted((e for e in about if not wanted or e.get("reason") in wanted), key=_told, reverse=True)


def _is_about(event: Json, obj: Json) -> bool:
    about, metadata = event.get("involvedObject", {}), obj["metadata"]
    if metadata.get("uid") and about.get("uid"):
        return bool(about["uid"] == metadata["uid"])
    return bool(
        about.get("name") == metadata["name"] and about.get("kind") == obj.get("kind", about.get("kind"))
    )


def _told(event: Json) -> datetime:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max((found for text in times if (found := moment(text))), default=BEGINNING)
