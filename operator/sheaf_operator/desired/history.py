"""The ServingRuntimes, an LLMDeployment's revisions: which of them to write and which to let go. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Observed, owned_by
from sheaf_operator.desired import render
from sheaf_operator.desired import revision as revisions
from sheaf_operator.desired.actions import Apply, Delete
from sheaf_operator.desired.choice import newest_first, runtime_of
from sheaf_operator.desired.drift import of_object
from sheaf_operator.desired.notes import Notes, read
from sheaf_operator.desired.revision import Revision

HISTORY = 3  # runtimes kept, the present one included


def record(observed: Observed, revision: Revision, notes: Notes) -> list[Apply]:
    """Write the revision's runtime unless it is there as it should be."""
    action = _apply(observed, revision, notes)
    live = runtime_of(observed, revision)
    return [action] if live is None or of_object(live, action.obj) else []


def take_back(observed: Observed, wanted: Revision) -> list[Apply]:
    """Orphans of an earlier LLMDeployment of this name, so that the history goes on and nothing is left over.

    They are written as they were recorded: no pod notices.
    """
    orphans = [r for r in observed.runtimes if not owned_by(r, observed.uid)]
    return [
        _apply(observed, found, read(runtime))
        for runtime in orphans
        if (found := revisions.read(runtime)) and found.hash != wanted.hash
    ]


def forgive(spec: LLMDeploymentSpec, observed: Observed) -> list[Apply]:
    """A failure counts while the spec asks for what failed; when it is asked for again it is tried again."""
    result = []
    for runtime in observed.runtimes:
        notes, found = read(runtime), revisions.read(runtime)
        if notes.failure and found and not found.serves(spec) and owned_by(runtime, observed.uid):
            result.append(_apply(observed, found, Notes(notes.fallback)))
    return result


def prune(observed: Observed, needed: Iterable[str | None]) -> list[Delete]:
    """Keep the needed runtimes and the newest others, `HISTORY` in all."""
    keep = {digest for digest in needed if digest}
    result = []
    for runtime in newest_first(observed):
        metadata = runtime["metadata"]
        digest = metadata.get("labels", {}).get(names.LABEL_REVISION)
        if digest in keep or not owned_by(runtime, observed.uid):
            continue
        if len(keep) < HISTORY:
            keep.add(digest)
        else:
            result.append(Delete("ServingRuntime", metadata["name"], metadata["uid"]))
    return result


def _apply(observed: Observed, revision: Revision, notes: Notes) -> Apply:
    identity = (observed.name, observed.namespace, observed.uid)
    obj = render.serving_runtime(*identity, revision, notes.annotations())
    return Apply(obj, create=runtime_of(observed, revision) is None)
