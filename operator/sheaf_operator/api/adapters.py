"""spec.model.adapters: LoRA adapters that pods have beside the model. No change of them restarts a pod."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sheaf_operator.api import names
from sheaf_operator.api.fields import ApiModel, rule, rules

MAX_ADAPTERS = 32
_PATH = r"^(/[^/\\s\\pC]+)+$"
_MOUNTED = (
    "self.pod.volumeMounts.exists(m,"
    " a.path.startsWith(m.mountPath.endsWith('/') ? m.mountPath : m.mountPath + '/'))"
)
_GIVEN = "!has(self.model.adapters) || size(self.model.adapters) == 0"


class Adapter(ApiModel):
    """A LoRA adapter."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?$",
            description="What requests name as their model.",
        ),
    ]
    path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            description="Its folder in the pod, below one of pod.volumeMounts or in the model's own,"
            f" {names.MODEL_DIR}. Weights that change get a new path.",
            json_schema_extra=rules(
                rule(
                    f"self.matches('{_PATH}') && !self.matches('/[.][.]?(/|$)')",
                    "must be a folder of a mounted volume, such as /adapters/support, without '..' and"
                    " blanks: adapters are not downloaded; put it into a claim, or fetch it with an init"
                    " container into an emptyDir",
                )
            ),
        ),
    ]


MODEL_RULE = rule(
    "!has(self.adapters) || !has(self.servedName) || !self.adapters.exists(a, a.name == self.servedName)",
    "no adapter may have the model's own name, servedName: requests choose by it",
    fieldPath=".adapters",
)
# Of the whole resource: without servedName its name is the model's.
ROOT_RULE = rule(
    "!has(self.spec.model) || !has(self.spec.model.adapters) || has(self.spec.model.servedName)"
    " || !self.spec.model.adapters.exists(a, a.name == self.metadata.name)",
    "no adapter may have the model's own name, which is metadata.name: set spec.model.servedName, or name the"
    " adapter otherwise",
)
SPEC_RULES = (
    rule(
        f"{_GIVEN} || has(self.engine.maxLoras)",
        "adapters need engine.maxLoras, how many of them run in one batch: pods start with room for them, so"
        " setting it replaces the pods once; adding adapters later does not",
        fieldPath=".model.adapters",
    ),
    rule(
        f"{_GIVEN} || self.model.adapters.all(a, a.path.startsWith('{names.MODEL_DIR}/')"
        f" || (has(self.pod.volumeMounts) && {_MOUNTED}))",
        "each adapter's path must be below one of pod.volumeMounts, or below"
        f" {names.MODEL_DIR}: mount the volume that holds it",
        fieldPath=".model.adapters",
    ),
)
