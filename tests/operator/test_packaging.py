"""Traps of the layout: `operator/` beside the standard library's `operator`, test packages, names."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_shadows_the_standard_librarys_operator() -> None:
    """`import collections` crashes from the root if `operator/` is importable."""
    assert not list((ROOT / "operator").glob("*.py"))
    assert not list((ROOT / "operator").glob("**/test_*.py"))
    allowed = {"sheaf_operator", "Dockerfile", "__pycache__"}
    assert {p.name for p in (ROOT / "operator").iterdir()} <= allowed
    code = "import operator, collections; print(operator.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT) not in done.stdout


def test_no_test_folder_is_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not list((ROOT / "e2e" / "tests").rglob("__init__.py"))


def test_test_files_have_names_of_their_own() -> None:
    files = [p.name for folder in ("tests", "e2e") for p in (ROOT / folder).rglob("test_*.py")]
    assert len(files) == len(set(files))


def test_no_two_files_of_the_local_cluster_share_a_name() -> None:
    files = [p.name for p in (ROOT / "e2e").rglob("*.py") if not p.name.startswith("__")]
    assert [name for name, count in Counter(files).items() if count > 1] == []


def test_product_tests_know_of_the_local_cluster_only_its_interface() -> None:
    texts = [p.read_text() for p in (ROOT / "e2e" / "tests" / "product").glob("*.py")]
    imported = {name for text in texts for name in re.findall(r"\b(localcluster(?:\.\w+)*)", text)}
    assert imported == {"localcluster.cluster"}


def test_the_operator_imports_no_torch() -> None:
    code = (
        "import sys, sheaf_operator.main\n"
        "heavy = {'torch', 'transformers', 'triton', 'sheaf_runtime', 'sheaf_kernels'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "docs")
