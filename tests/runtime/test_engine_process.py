"""The engine core as a process: its socket, its beginning and its end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import msgspec
import pytest
from checked_executor import CheckedExecutor, Info
from engine_process import PATIENCE, Client, core_process, cpu_seconds, listening, sockets
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.engine import __main__ as entry
from sheaf_runtime.engine.io import Channel
from sheaf_runtime.protocol.messages import (
    AbortRequests,
    Accepted,
    AddRequest,
    EngineFailed,
    EngineReady,
    Hello,
    Rejected,
)
from sheaf_runtime.protocol.sampling import SamplingParams
from tiny_llama import write_tiny_llama

VOCAB = 64


def ask(request_id, prompt=(1, 2, 3), **sampling):
    return AddRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(**{"temperature": 0.0, "ignore_eos": True} | sampling),
        arrival_time=time.time(),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), vocab_size=VOCAB)


@pytest.fixture(scope="module")
def core(model, tmp_path_factory):
    """One core for all tests that leave it as it was: process, address, context."""
    address = f"ipc://{tmp_path_factory.mktemp('s')}/core"
    config = EngineConfig(
        model=str(model),
        kv_cache_memory=1 << 20,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        max_waiting_requests=2,
    )
    with sockets() as context, core_process(config, address) as process:
        yield SimpleNamespace(process=process, address=address, context=context)


@pytest.fixture
def client(core, request):
    client = Client(core.context, core.address, request.node.name.encode())
    client.send(Hello())
    assert isinstance(client.receive(), EngineReady)
    yield client
    client.close()


def test_hello_is_answered_with_the_facts(core):
    client = Client(core.context, core.address, b"facts")
    client.send(Hello())
    ready = client.receive()
    client.close()
    assert isinstance(ready, EngineReady)
    assert (ready.max_model_len, ready.block_size, ready.max_num_seqs) == (512, 16, 4)
    assert (ready.vocab_size, ready.device, ready.dtype) == (VOCAB, "cpu", "float32")
    assert ready.num_blocks >= 512 // 16
    assert ready.weights_bytes > 0


def test_a_request_from_acceptance_to_its_end(client):
    client.send(ask("a", max_tokens=9))
    assert client.answer() == Accepted(request_id="a")
    steps = client.until_idle("a")
    outputs = [o for step in steps for o in step.outputs]
    assert [o.request_id for o in outputs] == ["a"] * 9
    assert sum(len(o.token_ids) for o in outputs) == 9
    assert [o.finish_reason for o in outputs] == [None] * 8 + ["length"]
    first, *rest = outputs
    assert first.scheduled_time <= first.first_token_time <= time.time()
    assert all(o.first_token_time is None for o in rest)
    assert steps[-1].stats.blocks_live == 0


def test_the_state_is_written_when_it_is_asked_for(core):
    """The API process does so before it gives up an engine that makes no progress."""
    core.process.stdin.write(b"state\n")
    core.process.stdin.flush()
    lines = iter(core.process.stderr.readline, b"")
    line = next(line for line in lines if line.startswith(b"engine: state: "))
    assert msgspec.json.decode(line.removeprefix(b"engine: state: "))["running"]["count"] == 0
    assert next(lines).startswith(b"  File "), "and where it stands"


def test_one_message_per_step_for_all_requests_of_a_client(client):
    for i in range(4):
        client.send(ask(str(i), (i + 1,), max_tokens=20))
    steps = [s for s in client.until_idle("0", "1", "2", "3") if s.outputs]
    assert len(steps) <= 20 + 4 + 2  # the four may have come in over as many steps
    assert max(len(s.outputs) for s in steps) == 4


def test_tokens_do_not_depend_on_the_company(client):
    def tokens(ids):
        for i in ids:
            client.send(ask(i, (int(i), 7), max_tokens=12))
        got = {i: [] for i in ids}
        for step in client.until_idle(*ids):
            for output in step.outputs:
                got[output.request_id] += output.token_ids
        return got

    together = tokens(["1", "2", "3", "4"])
    assert together == tokens(["1"]) | tokens(["2"]) | tokens(["3"]) | tokens(["4"])


def test_refusals_come_back_and_leave_nothing(client):
    client.send(ask("long", [1] * 600))
    answer = client.answer()
    assert isinstance(answer, Rejected)
    assert (answer.request_id, answer.reason) == ("long", "invalid")
    assert "512" in answer.message


def test_a_malformed_request_is_answered_and_noise_is_survived(client):
    client.send(b"\xc1 noise")
    payload = {"type": "AddRequest", "request_id": "bad", "prompt_token_ids": "no"}
    client.send(msgspec.msgpack.encode(payload))
    answer = client.answer()
    assert isinstance(answer, Rejected)
    assert (answer.request_id, answer.reason) == ("bad", "internal")


def test_a_full_queue_is_refused_and_aborts_free_everything(client):
    ids = [str(i) for i in range(7)]
    for i in ids:
        client.send(ask(i, max_tokens=500))
    answers = [client.answer() for _ in ids]
    assert [type(a) for a in answers] == [Accepted] * 6 + [Rejected]
    assert answers[-1].reason == "queue_full"
    client.send(AbortRequests(request_ids=ids))
    last = client.until_idle()[-1]
    assert last.outputs == []
    assert last.stats.blocks_live == 0


def test_a_client_that_went_away_blocks_nobody(core, client):
    gone = Client(core.context, core.address, b"gone")
    gone.send(ask("x", max_tokens=200))
    assert isinstance(gone.answer(), Accepted)
    gone.close()
    client.send(ask("a", max_tokens=3))
    outputs = [o for s in client.until_idle("a") for o in s.outputs]
    assert outputs[-1].finish_reason == "length"


def test_signals_are_left_to_the_api_process(core, client):
    core.process.send_signal(signal.SIGTERM)
    core.process.send_signal(signal.SIGINT)
    client.send(ask("a", max_tokens=2))
    client.until_idle("a")
    assert core.process.poll() is None


def test_idle_costs_nothing(core, client):
    client.send(ask("a", max_tokens=2))
    client.until_idle("a")
    client._socket.poll(1500)  # past the integrity check
    before = cpu_seconds(core.process.pid)
    client._socket.poll(2000)  # nothing arrives while idle
    assert cpu_seconds(core.process.pid) - before <= 0.02


def test_the_end_of_stdin_ends_it(model, tmp_path):
    config = EngineConfig(model=str(model), kv_cache_memory=1 << 20)
    with sockets() as context, core_process(config, f"ipc://{tmp_path}/core") as process:
        client = Client(context, f"ipc://{tmp_path}/core", b"c")
        client.send(Hello())
        assert isinstance(client.receive(), EngineReady)
        client.send(ask("a", max_tokens=500))
        assert isinstance(client.receive(), Accepted)
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


def test_it_dies_with_its_parent(model, tmp_path):
    """Even if the parent is killed; nobody reaps the core here, so its pidfd is watched."""
    config = msgspec.json.encode(EngineConfig(model=str(model), kv_cache_memory=1 << 20)).decode()
    script = (
        "import subprocess, sys, time\n"
        "fd = int(sys.argv[1])\n"
        "core = subprocess.Popen([sys.executable, '-m', 'sheaf_runtime.engine', '--socket', str(fd)],\n"
        "                        stdin=subprocess.PIPE, pass_fds=[fd])\n"
        "core.stdin.write(sys.argv[2].encode() + b'\\n'); core.stdin.flush()\n"
        "print(core.pid, flush=True)\n"
        "core.wait()\n"
    )
    with listening(f"ipc://{tmp_path}/core") as listener:
        command = [sys.executable, "-c", script, str(listener.fileno()), config]
        with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[listener.fileno()]) as parent:
            pidfd = os.pidfd_open(int(parent.stdout.readline()))
            parent.kill()
    ended, _, _ = select.select([pidfd], [], [], PATIENCE)
    os.close(pidfd)
    assert ended


def test_a_missing_model_is_told_to_the_client_and_on_stderr(tmp_path):
    config = EngineConfig(model=str(tmp_path / "nowhere"))
    with sockets() as context, core_process(config, f"ipc://{tmp_path}/core") as process:
        client = Client(context, f"ipc://{tmp_path}/core", b"c")
        client.send(Hello())
        answer = client.receive()
        assert isinstance(answer, EngineFailed)
        assert "nowhere" in answer.message
        assert process.wait(PATIENCE) == 2
        assert process.stderr.read().decode().splitlines() == [f"engine: {answer.message}"]


def test_a_wrong_configuration_is_refused(tmp_path):
    with core_process(b'{"model": "m", "block_siz": 3}', f"ipc://{tmp_path}/core") as process:
        assert process.wait(PATIENCE) == 2
        assert "block_siz" in process.stderr.read().decode()


def test_without_a_configuration_it_ends_quietly():
    """The API process has ended before it knew which model to load."""
    command = [sys.executable, "-m", "sheaf_runtime.engine", "--socket", "0"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_failure_in_the_loop_is_told_and_ends_the_process(monkeypatch, tmp_path, capfd):
    class Breaks(CheckedExecutor):
        def collect(self):
            if len(self.tables_at_launch) == 2:
                raise RuntimeError("the device is gone")
            return super().collect()

    monkeypatch.setattr(
        "sheaf_runtime.worker.local.LocalExecutor", lambda config: Breaks(Info(), config.block_size, 4, 32)
    )
    address = f"ipc://{tmp_path}/core"
    channel = Channel(listening(address).detach())
    with sockets() as context:
        clients = [Client(context, address, b"said hello"), Client(context, address, b"did not")]
        clients[0].send(Hello())
        for client in clients:
            client.send(ask("a", max_tokens=900))
        assert entry._serve(EngineConfig(model="m"), channel, entry._Watched(0)) == 1
        assert isinstance(clients[0].receive(), EngineReady)
        for client in clients:
            assert isinstance(client.answer(), Accepted)
            assert client.answer() == EngineFailed(message="the device is gone")
        channel.close()
    assert "the device is gone" in capfd.readouterr().err
