"""What the operator costs: CPU and memory with many models at rest, a restart, and how soon it reacts.

``python benchmarks/operator_cost.py --output benchmarks/results/operator_cost.json``

CPU is read from /proc of the operator's process alone. What the scrapes cost of it is measured by as many of
the same scrapes, made by the same code in a process of its own; ``beside_scrapes`` is the difference.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from pathlib import Path
from typing import Any

import httpx
from localcluster.machine.launcher import python
from machine import commit, cpu_seconds, processor
from operator_fleet import NAMESPACE, POD_PORT, Fleet

POLL = 10.0
LIMITS = {
    "cpu_seconds_per_minute_beside_scrapes": 3.0,
    "memory_peak_mb": 400,
    "restart_seconds": 60,
    "reaction_seconds_beyond_the_poll": 2.0,
}
# The same scrapes at the same pace: each model's pods once per poll, all models at times of their own.
SCRAPES = """
import asyncio, random, resource, sys
from sheaf_operator.cluster.scrape import Scraper
from sheaf_operator.main import allow_open_files, in_loop
asked = 0
async def follow(scraper, targets, poll):
    global asked
    await asyncio.sleep(random.uniform(0, poll))
    while True:
        for answer in (await scraper.read(targets)).values():
            assert not isinstance(answer, str), answer
            asked += 1
        await asyncio.sleep(poll)
def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
async def main(poll, seconds, urls):
    scraper = Scraper(2.0)
    models = [[(u, u) for u in urls[i:i+2]] for i in range(0, len(urls), 2)]
    followers = [asyncio.create_task(follow(scraper, m, poll)) for m in models]
    await asyncio.sleep(poll)
    cpu, count = spent(), asked
    await asyncio.sleep(seconds)
    print((spent() - cpu) / (asked - count))
    for task in followers:
        task.cancel()
    await asyncio.gather(*followers, return_exceptions=True)
    await scraper.close()
allow_open_files()
in_loop(main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
"""


def total(text: str, counter: str) -> float:
    """Of all series of one of the operator's counters."""
    found = re.findall(rf"^sheaf_operator_{counter}_total(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


class Cost:
    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def metrics(self) -> str:
        try:
            return httpx.get(self.fleet.metrics_url, trust_env=False, timeout=30).text
        except httpx.HTTPError:
            return ""

    def memory(self, field: str) -> float:
        """VmRSS or VmHWM in MB."""
        status = Path(f"/proc/{self.fleet.operator_pid()}/status").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        assert found
        return round(int(found[1]) / 1024, 1)

    def wait_at_rest(self, quiet: float = 15, timeout: float = 400) -> float:
        """Until each pod has been scraped since the start, and nothing was written for `quiet` seconds.

        Returns when the last of that began.
        """
        deadline = time.monotonic() + timeout
        pods = self.fleet.models * self.fleet.replicas
        writes, since = -1.0, 0.0
        while time.monotonic() < deadline:
            text = self.metrics()
            scraped = len(re.findall(r"^sheaf_operator_scrapes_total\{", text, re.MULTILINE))
            now = total(text, "writes")
            if now != writes or scraped < self.fleet.models or total(text, "scrapes") < pods:
                writes, since = now, time.monotonic()
            elif time.monotonic() - since >= quiet:
                return since
            time.sleep(1)
        raise TimeoutError("the operator does not come to rest")

    def at_rest(self, seconds: float) -> dict[str, Any]:
        pid = self.fleet.operator_pid()
        before, text = cpu_seconds(pid), self.metrics()
        began = time.monotonic()
        time.sleep(seconds)
        minutes = (time.monotonic() - began) / 60
        spent, after = cpu_seconds(pid) - before, self.metrics()
        scrapes = total(after, "scrapes") - total(text, "scrapes")
        per_scrape = self.scrape_cost()
        return {
            "cpu_seconds_per_minute": round(spent / minutes, 2),
            "scrapes_per_minute": round(scrapes / minutes),
            "cpu_seconds_per_minute_of_scrapes": round(per_scrape * scrapes / minutes, 2),
            "cpu_seconds_per_minute_beside_scrapes": round((spent - per_scrape * scrapes) / minutes, 2),
            "microseconds_per_scrape": round(per_scrape * 1e6),
            "writes": total(after, "writes") - total(text, "writes"),
            "memory_mb": self.memory("VmRSS"),
        }

    def scrape_cost(self, seconds: float = 30) -> float:
        """CPU seconds of one scrape."""
        urls = [f"http://{a}:{POD_PORT}/metrics" for found in self.fleet.addresses.values() for a in found]
        command = [python(), "-c", SCRAPES, str(POLL), str(seconds), *urls]
        return float(self.fleet.cluster.launcher.run(command, timeout=300))

    def restart(self) -> float:
        """Seconds from the start of a new process until it is at rest."""
        self.fleet.stop_operator()
        began = time.monotonic()
        self.fleet.start_operator()
        return round(self.wait_at_rest() - began, 1)

    def reactions(self, count: int) -> list[float]:
        """Seconds from a change of a model's metrics to its new count, one model after the other."""
        return [round(self._reaction(name), 2) for name in sorted(self.fleet.addresses)[:count]]

    def _reaction(self, name: str) -> float:
        began = time.monotonic()
        with self.fleet.busy_file.open("a") as file:
            file.write("".join(f"{address}\n" for address in self.fleet.addresses[name]))
        self.fleet.cluster.api.wait_for(
            "apps/v1",
            "Deployment",
            lambda found: found and found[0]["spec"]["replicas"] > self.fleet.replicas,
            namespace=NAMESPACE,
            name=f"{name}-predictor",
            timeout=60,
            describe=f"{name} is scaled up",
        )
        return time.monotonic() - began


def measure(models: int, replicas: int, seconds: float) -> dict[str, Any]:
    settings = {"SHEAF_AUTOSCALE_INTERVAL": str(POLL), "SHEAF_LOG_LEVEL": "warning"}
    with Fleet(models, replicas, settings) as fleet:
        cost = Cost(fleet)
        fleet.start_operator()
        fleet.fill()
        cost.wait_at_rest()
        result: dict[str, Any] = {"models": models, "replicas": replicas, "poll_seconds": POLL}
        result["restart_seconds"] = cost.restart()
        result |= cost.at_rest(seconds)
        result["reaction_seconds"] = reactions = cost.reactions(10)
        result["reaction_seconds_beyond_the_poll"] = round(max(reactions) - POLL, 2)
        result["memory_peak_mb"] = cost.memory("VmHWM")
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result = measure(given.models, given.replicas, given.seconds)
    where = {"processor": processor(), "python": platform.python_version(), "commit": commit()}
    missed = [f"{key} is {result[key]}, not below {m}" for key, m in LIMITS.items() if result[key] >= m]
    text = json.dumps({**where, **result, "limits": LIMITS}, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")
    for line in missed:
        print(line)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
