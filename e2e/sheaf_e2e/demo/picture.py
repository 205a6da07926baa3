"""The run as a picture, drawn from its own samples: what came, what waited, and what the autoscaler did."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from localcluster.cache import cache_root
from sheaf_runtime.bench.load import Outcome

from sheaf_e2e.demo.follower import Recording

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BIN = 5.0  # seconds over which arrivals are counted


def draw(recording: Recording, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write an SVG to ``path``: four panels over one time axis, with the decisions marked in all of them."""
    # It is imported here because it makes the folder of its font cache when it is, in the home unless told.
    os.environ.setdefault("MPLCONFIGDIR", str(cache_root() / "matplotlib"))
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "sheaf", "font.size": 9, "svg.fonttype": "none"}):
        figure, panels = plt.subplots(4, 1, figsize=(9, 9), sharex=True, constrained_layout=True)
        _arrivals(panels[0], recording, outcomes)
        _queue(panels[1], recording)
        _replicas(panels[2], recording)
        _latency(panels[3], recording, outcomes)
        for panel in panels:
            for decision in recording.decisions:
                panel.axvline(decision.seconds, color="0.6", linewidth=0.8, linestyle=":")
            panel.legend(loc="upper right", frameon=False)
            panel.margins(x=0.01)
        for decision in recording.decisions:
            panels[0].annotate(
                f"{decision.before} → {decision.after}",
                (decision.seconds, 1.02),
                xycoords=("data", "axes fraction"),
                ha="center",
            )
        panels[-1].set_xlabel("seconds since the load began")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _arrivals(panel: Axes, recording: Recording, outcomes: Sequence[Outcome]) -> None:
    times = [o.scheduled - recording.start for o in outcomes]
    edges = [i * _BIN for i in range(int(max(times, default=0.0) / _BIN) + 2)]
    weights = [1 / _BIN] * len(times)
    panel.hist(times, bins=edges, weights=weights, color="#7aa6c2", label="arrivals (requests/s)")
    panel.set_ylabel("requests/s")


def _queue(panel: Axes, recording: Recording) -> None:
    seconds = [s.seconds for s in recording.samples]
    panel.plot(seconds, [s.waiting for s in recording.samples], color="#c23b22", label="waiting")
    panel.plot(seconds, [s.running for s in recording.samples], color="#2a7f62", label="running")
    panel.set_ylabel("requests")
    usage = panel.twinx()
    usage.plot(seconds, [100 * s.kv for s in recording.samples], color="#8e6bbf", linewidth=0.9)
    usage.set_ylabel("KV cache in use, %", color="#8e6bbf")
    usage.set_ylim(0, 100)


def _replicas(panel: Axes, recording: Recording) -> None:
    seconds = [s.seconds for s in recording.samples]
    wanted, ready = [s.desired for s in recording.samples], [s.ready for s in recording.samples]
    panel.step(seconds, wanted, where="post", color="#c27c22", linestyle="--", label="replicas wanted")
    panel.step(seconds, ready, where="post", color="#22557f", label="replicas ready")
    panel.set_ylim(0, max([*wanted, *ready, 1]) + 0.5)
    panel.set_ylabel("replicas")


def _latency(panel: Axes, recording: Recording, outcomes: Sequence[Outcome]) -> None:
    answered = [o for o in outcomes if o.chunk_times]
    panel.scatter(
        [o.scheduled - recording.start for o in answered],
        [o.ttft for o in answered],
        s=8,
        color="#444444",
        label="time to first token of each request",
    )
    panel.set_ylabel("TTFT, s")
