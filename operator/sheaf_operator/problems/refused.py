"""Why the API server creates no pod, from its words. Pure."""

from __future__ import annotations

import re
from datetime import datetime

from sheaf_operator.problems.evidence import first, rules
from sheaf_operator.problems.problem import Lack, Problem, clip

_RULES = rules(
    ("QuotaExceeded", r"exceeded quota|insufficient quota to match"),
    ("QuotaWantsLimits", r"failed quota: .*must specify"),
    (
        "LimitRangeViolated",
        r"(maximum|minimum) [\w./-]+ usage per (Container|Pod)|limit to request ratio per",
    ),
    ("PodSecurityViolated", r"violates PodSecurity|security context constraint"),
    ("ServiceAccountNotFound", r"error looking up service account|serviceaccounts? \S+ not found"),
    ("ClassNotFound", r"no PriorityClass with name|RuntimeClass \S+ not found|runtimeclasses.* not found"),
    ("AdmissionDenied", r"admission webhook .* denied|ValidatingAdmissionPolicy .* denied|denied request"),
    ("WebhookUnavailable", r"failed (calling|to call) webhook"),
)
# Only what exceeds is listed: "requested: requests.cpu=1,pods=1, used: ..."
_REQUESTED = re.compile(r"requested: (.*?), used:")


def of_refusal(said: str, since: datetime | None) -> Problem:
    reason = first(_RULES, said) or "PodsRefused"
    return Problem(reason, f"no pod can be created: {clip(said)}", quota(said), since)


def quota(said: str) -> tuple[Lack, ...]:
    """What a quota has too little of."""
    short = _REQUESTED.search(said)
    asked = [part.partition("=")[0].strip() for part in short[1].split(",")] if short else []
    return tuple(Lack("Quota", name) for name in sorted(asked))
