"""docs/conditions.md: a paragraph and an anchor for each reason. Written by `make crds`."""

from __future__ import annotations

import sys
from pathlib import Path

from sheaf_operator.problems.reasons.entry import PAGE, Mends, Reason
from sheaf_operator.problems.reasons.table import GROUPS

_MENDS: dict[Mends, str] = {
    "alone": "Passes by itself; never `Stalled`.",
    "perhaps": "May pass by itself; `Stalled` after the patience.",
    "never": "Stays until somebody acts; `Stalled` at once.",
}
_HEAD = """# Reasons of conditions

`kubectl describe llmd NAME` shows them. A message holds what was found, with the server's or the container's
own words, what to do, and the place on this page. The page is made from the operator's own table
(`operator/sheaf_operator/problems/reasons`), so it is complete.

While something that may pass by itself keeps a model from serving (a node that an autoscaler has to bring, a
claim, a quota), `Ready` is False and `Reconciling` True with its reason. `Stalled` turns True when it has
lasted for the patience: the chart's `operator.stallPatience`, 600 seconds unless you set it, by the times
that the pods themselves keep, so a restart of the operator begins nothing anew.
"""


def page() -> str:
    parts = [_HEAD]
    for title, group in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [_entry(reason) for reason in group]
    return "\n".join(parts)


def _entry(reason: Reason) -> str:
    todo = f"What to do: {reason.do}." if reason.do else ""
    lasts = _MENDS[reason.mends] if todo or reason.mends != "alone" else ""
    return "\n".join([f"### {reason.name}\n", *(line for line in (reason.means, todo, lasts) if line), ""])


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page())
