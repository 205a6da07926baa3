"""Rules over the whole of spec.pod, in CEL, put together from what they say of each container."""

from __future__ import annotations

from sheaf_operator.api.fields import rule

# The whole revision is recorded in an annotation, and all annotations of an object have 256 KiB.
MAX_TEXT = 131_072


def _sum(items: str, text: str = "x", given: str = "true") -> str:
    """CEL: the characters of a list that may be absent; `text` is what counts of an item `x`."""
    return f"(has({items}) ? {items}.map(x, {given} ? size({text}) : 0).sum() : 0)"


def _env(holder: str) -> str:
    return _sum(holder + ".env", "x.value", "has(x.value)")


def _containers(field: str) -> str:
    each = " + ".join([_env("c"), _sum("c.args"), _sum("c.command")])
    return f"(has(self.{field}) ? self.{field}.map(c, {each}).sum() : 0)"


_TEXT = " + ".join(
    [
        _env("self"),
        _sum("self.annotations", "self.annotations[x]"),
        _containers("initContainers"),
        _containers("sidecars"),
    ]
)
_VOLUMES = "(has(self.volumes) ? self.volumes.map(v, v.name) : [])"


def _known(field: str) -> str:
    """CEL: each mount of these containers names a volume of the pod."""
    mounts = f"(!has(c.volumeMounts) || c.volumeMounts.all(m, m.name in {_VOLUMES}))"
    return f"(!has(self.{field}) || self.{field}.all(c, {mounts}))"


_KNOWN = " && ".join(
    [
        f"(!has(self.volumeMounts) || self.volumeMounts.all(m, m.name in {_VOLUMES}))",
        _known("initContainers"),
        _known("sidecars"),
    ]
)
_APART = (
    "!has(self.sidecars) || !has(self.initContainers)"
    " || self.sidecars.all(s, !self.initContainers.exists(i, i.name == s.name))"
)

POD_RULES = (
    rule(
        f"{_TEXT} <= {MAX_TEXT}",
        f"values of env, arguments and annotations may have {MAX_TEXT} characters together: put long"
        " texts into a ConfigMap, and name it in valueFrom or mount it",
    ),
    rule(_KNOWN, "each of volumeMounts must name one of spec.pod.volumes"),
    rule(_APART, "no sidecar may have the name of an init container"),
)
