"""Argo CD's view of an LLMDeployment: the script of manifests/gitops/argocd.yaml, run by Lua itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from lupa import LuaRuntime
from waiting_states import CASES, Case

EXAMPLE = Path(__file__).parents[2] / "manifests" / "gitops" / "argocd.yaml"
KEY = "#   resource.customizations.health.sheaf.dev_LLMDeployment: |\n"


def script() -> str:
    """What stands below the key, without the comment sign and the indentation."""
    after = EXAMPLE.read_text().partition(KEY)[2]
    lines = after[: after.index("\napiVersion:")].splitlines()
    assert lines
    assert all(line.startswith("#     ") for line in lines)
    return "\n".join(line.removeprefix("#     ") for line in lines)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_argo_cd_shows_each_state_as_what_it_is(case: Case) -> None:
    lua = LuaRuntime(unpack_returned_tuples=True)
    judge = lua.eval(f"function(obj) {script()} end")
    answer = judge(lua.table_from(case.model, recursive=True))
    assert answer.status == case.argo
    assert answer.message
