"""spec.engine.extraArgs: more flags for the runtime, none of which touches what the operator sets itself.

Whatever gets past these rules changes nothing of the operator's either: its own flags come last (`render`),
and the runtime takes no abbreviations. The rules say it before a pod is placed and a model fetched.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sheaf_operator.api.fields import rule, rules

# Flags that the operator writes itself from fields of the spec.
OWNED_FLAGS = (
    "--host", "--port", "--served-model-name", "--max-model-len", "--dtype", "--device", "--quantization",
    "--kv-cache-dtype", "--tensor-parallel-size", "--enable-prefix-caching", "--no-enable-prefix-caching",
    "--drain-timeout", "--ssl-certfile", "--ssl-keyfile", "--target-inter-token-ms", "--target-ttft-ms",
    "--max-waiting-requests", "--max-waiting-tokens", "--enable-lora", "--max-loras", "--max-lora-rank",
    "--adapters-file",
)  # fmt: skip

_NAME = "self.split('=')[0].replace('_', '-').trim()"
# A flag, perhaps with a value after '=' that neither begins nor ends with a blank; or a negative number.
_FLAG = r"^--[A-Za-z][-A-Za-z0-9_]*(=(\\S((?s:.)*\\S)?)?)?$"
# Another flag after the first one's value, as a folded block of YAML has it; JSON may hold anything.
_SECOND = r"^--[-A-Za-z0-9_]+=[^{\\[\\s]*\\s+--[A-Za-z]"

ExtraArg = Annotated[
    str,
    Field(
        max_length=2048,
        json_schema_extra=rules(
            rule(
                f"!self.startsWith('-') || !{list(OWNED_FLAGS)!r}.exists(f, f.startsWith({_NAME}))",
                "must not repeat or abbreviate a flag that the operator sets: use the spec's own field ("
                + ", ".join(OWNED_FLAGS)
                + ")",
            ),
            rule(
                rf"!self.matches('^\\s*-') || self.matches('{_FLAG}') && !self.matches('{_SECOND}')"
                r" || self.matches('^-[0-9.]\\S*$')",
                "must be one argument: write a flag and its value as two items, '--flag' and 'value', or as"
                " '--flag=value', with no blank or line break around them",
            ),
            rule(
                r"self.matches('^[-{\\[]') || self == self.trim()",
                "must not begin or end with a blank or line break: write the value on one line",
            ),
            rule("!self.matches('^[‐-―−]')", "must begin with two plain hyphens (--), not with a dash"),
            rule("!self.contains('{{')", "must not contain '{{': KServe would expand it as a template"),
        ),
    ),
]
ExtraArgs = Annotated[
    list[ExtraArg],
    Field(
        max_length=32,
        description="More flags for `sheaf serve`, one argument per item; $(NAME) is one of the environment.",
        json_schema_extra={
            "x-kubernetes-list-type": "atomic",
            **rules(
                rule(
                    "size(self) == 0 || self[0].startsWith('-')",
                    "must begin with a flag, such as '--max-num-seqs=32'",
                )
            ),
        },
    ),
]
