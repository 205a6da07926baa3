"""Settings from the environment, and what of them reaches kopf."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kopf
import pytest
from sheaf_operator.handlers import configure
from sheaf_operator.settings import Settings


def test_defaults_and_identity() -> None:
    settings = Settings.from_env({"POD_NAME": "op-1", "POD_NAMESPACE": "elsewhere"})
    assert (settings.identity, settings.namespace) == ("op-1", "elsewhere")
    assert settings.watch_namespaces == ()


def test_values_take_the_kind_of_their_default() -> None:
    settings = Settings.from_env({"SHEAF_API_REQUESTS": "8", "SHEAF_AUTOSCALE_INTERVAL": "2.5"})
    assert (settings.api_requests, settings.autoscale_interval) == (8, 2.5)


def test_a_wrong_value_names_its_variable() -> None:
    with pytest.raises(ValueError, match="SHEAF_API_REQUESTS='many' is not a int"):
        Settings.from_env({"SHEAF_API_REQUESTS": "many"})


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_time_that_cannot_be_waited_is_refused(value: str) -> None:
    """An interval of 0 would be a loop without a pause."""
    with pytest.raises(ValueError, match=r"SHEAF_AUTOSCALE_INTERVAL=.* must be more than 0"):
        Settings.from_env({"SHEAF_AUTOSCALE_INTERVAL": value})


@pytest.mark.parametrize(("namespaces", "scans"), [((), True), (("ml", "lab"), False)])
def test_given_namespaces_ask_for_nothing_cluster_scoped(namespaces: tuple[str, ...], scans: bool) -> None:
    settings = kopf.OperatorSettings()
    configure(settings, Settings(watch_namespaces=namespaces))
    assert settings.scanning.disabled is not scans


def test_without_a_cluster_it_says_so_in_one_line_and_ends(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "sheaf_operator"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("sheaf-operator: no cluster to work in")
    assert len(ended.stderr.splitlines()) == 1
