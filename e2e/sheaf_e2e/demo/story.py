"""The demo's chapters, in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import openai
import yaml
from localcluster.cluster import Cluster, Object
from sheaf_runtime.bench.load import Outcome
from sheaf_runtime.bench.report import summarize

from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.demo.console import Console
from sheaf_e2e.demo.follower import API_VERSION, KIND, Follower, Recording, condition
from sheaf_e2e.demo.load import OpenLoop
from sheaf_e2e.release import OPERATOR, OPERATOR_NAMESPACE

SAMPLE = CHECKOUT / "manifests" / "samples" / "smollm2.yaml"
QUESTION = "What is the capital of France?"
LOAD_RATE = 2.0  # requests per second at first
LOAD_GROWTH = (
    1.5  # times so many, every LOAD_STEP seconds, until it takes all replicas: machines differ in speed
)
LOAD_STEP = 8.0
LOAD_STEPS = 12
RUSH_SECONDS = 45  # at most, once all replicas are wanted; less if they are there before
TRICKLE_RATE = 0.4  # goes on through the scale-down, on the same pooled connections
MAX_TOKENS = 48
READY_TIMEOUT = 240
SCALE_TIMEOUT = 240


class StoryFailed(RuntimeError):
    """Something did not happen; the message says what, with what the cluster knows of it."""


def install_operator(cluster: Cluster, console: Console) -> None:
    """As a user without Helm would: the operator is a pod under the rights that manifests/ gives it."""
    console.say("$ kubectl apply --server-side -k manifests/")
    cluster.kubectl("apply", "--server-side", "-k", str(CHECKOUT / "manifests"))
    cluster.wait_deployment(OPERATOR, OPERATOR_NAMESPACE, READY_TIMEOUT)
    console.good("the operator runs as a pod")


def apply_sample(cluster: Cluster, console: Console) -> Object:
    """Apply the sample as it is, and wait until it is Ready: the resource then."""
    resource = yaml.safe_load(SAMPLE.read_text())
    name, namespace = resource["metadata"]["name"], resource["metadata"]["namespace"]
    console.say(f"$ kubectl apply -f {SAMPLE.relative_to(CHECKOUT)}")
    console.say(cluster.kubectl("apply", "-f", str(SAMPLE)).strip())
    shown: list[str] = []

    def ready(objects: list[Object]) -> Object | None:
        for found in objects:
            state = condition(found, "Ready")
            line = f"Ready={state['status']} {state['reason']}: {state['message']}"
            if state["reason"] and line not in shown:
                shown.append(line)
                console.say(line)
            if state["status"] == "True":
                return found
        return None

    try:
        found: Object = cluster.api.wait_for(
            API_VERSION,
            KIND,
            ready,
            namespace=namespace,
            name=name,
            timeout=READY_TIMEOUT,
            describe=f"LLMDeployment {name} is Ready",
        )
    except TimeoutError as error:
        raise StoryFailed(f"{error}\n{cluster.describe(namespace)}") from None
    console.good(f"Ready. Inside the cluster it is {found['status']['url']}")
    phases = "  ".join(f"{p['phase']} {p['seconds']} s" for p in found["status"].get("timeline", []))
    console.say(f"timeline: {phases}")
    capacity = found["status"].get("capacity", {})
    if capacity:
        console.say("capacity of a replica: " + ", ".join(f"{k} {v:,}" for k, v in capacity.items()))
    return found


def ask(base_url: str, model: str, console: Console) -> str:
    """Stream one answer through the official client, as it comes; returns it."""
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)
    console.say(f"question: {QUESTION}")
    console.stream("             answer: ")
    answer = ""
    with client:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=40,
            temperature=0,
            stream=True,
        )
        for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                answer += piece
                console.stream(piece)
    console.stream("\n")
    if "Paris" not in answer:
        raise StoryFailed(f"the model answered {answer!r}, which is not what it answers in transformers")
    return answer


class Users(threading.Thread):
    """The open-loop load in a thread with an event loop of its own. ``rate`` may be changed at any time.

    To be used as a context manager: whatever is still under way at its end is given up.
    """

    def __init__(self, base_url: str, model: str, rate: float) -> None:
        super().__init__(daemon=True)
        self.rate = rate
        self.error: BaseException | None = None
        self._stop_sending: Callable[[], object] = lambda: None
        self._give_up: Callable[[], object] = lambda: None
        self._sending = threading.Event()  # Thread has a _started of its own
        self._loop = OpenLoop(f"{base_url}/v1", model, MAX_TOKENS, lambda: self.rate)

    def __enter__(self) -> Users:
        self.start()
        self._sending.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._give_up()
        self.join()

    @property
    def outcomes(self) -> list[Outcome]:
        return self._loop.outcomes

    def run(self) -> None:
        async def main() -> None:
            stop, loop, load = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
            assert load is not None
            self._stop_sending = lambda: loop.call_soon_threadsafe(stop.set)
            self._give_up = lambda: loop.call_soon_threadsafe(load.cancel)
            self._sending.set()
            await self._loop.run(stop)

        try:
            asyncio.run(main())
        except BaseException as error:
            self.error = error

    def finish(self, timeout: float) -> None:
        """Send nothing more and wait for every answer that is under way."""
        self._stop_sending()
        self.join(timeout)
        if self.is_alive():
            raise StoryFailed(f"{self._loop.in_flight} requests had no answer after {timeout:.0f} s")
        if self.error is not None:
            raise self.error


def scale_up_and_down(
    cluster: Cluster, resource: Object, base_url: str, console: Console
) -> tuple[list[Outcome], Recording]:
    """Load until there are as many replicas as allowed, then a trickle until there is one again."""
    spec, metadata = resource["spec"], resource["metadata"]
    most, least = spec["autoscaling"]["maxReplicas"], spec["autoscaling"]["minReplicas"]
    model = spec["model"]["servedName"]

    def available(count: int) -> Callable[[Object], bool]:
        return lambda o: o.get("status", {}).get("readyReplicas") == count == o["status"].get("replicas")

    def wanted(count: int) -> Callable[[Object], bool]:
        return lambda o: o.get("status", {}).get("autoscaling", {}).get("desired") == count

    with (
        Follower(cluster, metadata["name"], metadata["namespace"], console) as follower,
        Users(base_url, model, LOAD_RATE) as users,
    ):
        console.say(f"open loop: {LOAD_RATE:g} requests/s of {MAX_TOKENS} tokens each")
        grow_until(lambda: follower.wait(wanted(most), LOAD_STEP), users, console)
        there = follower.wait(available(most), RUSH_SECONDS)
        users.rate = TRICKLE_RATE
        console.say(f"the rush is over: {TRICKLE_RATE:g} requests/s go on, on the same connections")
        if not there and not follower.wait(available(most), SCALE_TIMEOUT):
            raise StoryFailed(f"{most} replicas did not come\n{cluster.describe(metadata['namespace'])}")
        console.good(f"{most} replicas serve")
        if not follower.wait(available(least), SCALE_TIMEOUT):
            raise StoryFailed(f"it did not go back to {least}\n{cluster.describe(metadata['namespace'])}")
        console.good(f"back to {least}; the last answers come in")
        users.finish(SCALE_TIMEOUT)
    return users.outcomes, follower.recording


def grow_until(enough: Callable[[], bool], users: Users, console: Console) -> None:
    """Raise the rate step by step; ``enough`` waits for one step's time."""
    for _ in range(LOAD_STEPS):
        if enough():
            return
        users.rate *= LOAD_GROWTH
        console.say(f"it copes: {users.rate:.1f} requests/s from now on")
    raise StoryFailed(f"{users.rate:.0f} requests/s are not enough to want all replicas")


def summary(outcomes: list[Outcome], console: Console) -> None:
    """Counts and times as the clients saw them. Raises StoryFailed if a single request failed."""
    s = summarize(outcomes)
    p50, p99 = ((s[name] or 0.0) / 1000 for name in ("median_ttft_ms", "p99_ttft_ms"))
    console.say(
        f"{len(outcomes)} requests, {s['failed']} failures; TTFT p50 {p50:.2f} s, p99 {p99:.2f} s; "
        f"{s['total_output_tokens']} tokens at {s['output_throughput']:.0f} tok/s"
    )
    cores = os.cpu_count() or 1
    if cores < 8:
        console.say(
            f"On {cores} cores more replicas show the mechanism, not more throughput: they share the cores."
        )
    if s["failed"]:
        raise StoryFailed(f"{s['failed']} requests failed; most often: {next(iter(s['errors']))}")
    console.good("no request failed, every answer came complete with [DONE]")


def keep(cluster: Cluster, resource: Object, base_url: str, console: Console) -> None:
    """Stay up until Ctrl-C."""
    model = resource["spec"]["model"]["servedName"]
    console.step("It stays up; Ctrl-C ends it")
    console.say(f"export KUBECONFIG={cluster.kubeconfig}")
    console.say(f"alias kubectl={Path(cluster.kubectl_program)}")
    console.say("kubectl get llmd,isvc,pods")
    body = f'{{"model":"{model}","messages":[{{"role":"user","content":"Hello!"}}],"max_tokens":40}}'
    console.say(f"curl {base_url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
    threading.Event().wait()
