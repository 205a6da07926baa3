"""One table holds every reason: what is said is in it, what is in it is said, the page is made of it."""

import ast
from pathlib import Path

import pytest
from sheaf_operator.problems.problem import MAX_MESSAGE, Problem
from sheaf_operator.problems.reasons.page import page
from sheaf_operator.problems.reasons.table import GROUPS, REASONS
from sheaf_operator.status.situation import told

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for path in (ROOT / "operator" / "sheaf_operator").rglob("*.py")
    if "reasons" not in path.parts and "api" not in path.parts
]


def literals() -> set[str]:
    """Every string in the operator's code."""
    nodes = (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def said() -> set[str]:
    """The reasons that are written out where a Problem or a State is made."""
    position = {"Problem": 0, "State": 1}
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            at = position.get(node.func.id)
            if at is None or len(node.args) <= at:
                continue
            found |= {
                part.value
                for part in ast.walk(node.args[at])
                if isinstance(part, ast.Constant) and str(part.value)[:1].isupper()
            }
    return found


def test_what_is_said_is_in_the_table() -> None:
    assert said() - REASONS.keys() == set(), "add it to problems/reasons"


def test_what_is_in_the_table_is_said() -> None:
    assert REASONS.keys() - literals() == set(), "nothing says it: remove it"


def test_no_reason_is_there_twice() -> None:
    assert len(REASONS) == sum(len(group) for group in GROUPS.values())


def test_the_page_is_made_of_the_table() -> None:
    assert (ROOT / "docs" / "conditions.md").read_text() == page(), "run `make crds`"


@pytest.mark.parametrize("name", REASONS)
def test_an_entry_fits_the_condition_and_has_its_place_on_the_page(name: str) -> None:
    reason = REASONS[name]
    assert name.isalnum()
    assert len(name) <= 64
    assert f"### {name}\n" in page()
    assert len(told("False", Problem(name, "x" * MAX_MESSAGE)).message) <= 1000
    assert reason.do or reason.mends == "alone" or reason.name.startswith("Name")
