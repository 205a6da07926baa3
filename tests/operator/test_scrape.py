import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import kube_objects as k
import pytest
import trustme
from aiohttp import web
from sheaf_operator.api import names
from sheaf_operator.cluster import scrape
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.cluster.reading import Reading, parse
from sheaf_operator.cluster.scrape import Scraper
from sheaf_operator.scaling import samples

TEXT = """# HELP vllm:num_requests_running x
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:cache_config_info{block_size="16",num_gpu_blocks="100",engine="0"} 1.0
vllm:request_success_total{engine="0",finished_reason="stop"} 30
vllm:request_success_total{engine="0",finished_reason="length"} 12
vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 12
sheaf:blocks_live{engine="0",model_name="m"} 25
sheaf:queued_tokens{engine="0",model_name="m"} 700
sheaf:oldest_wait_seconds{engine="0",model_name="m"} 1.5
sheaf:weights_bytes{engine="0",model_name="m"} 2.7e+08
sheaf:max_num_seqs{engine="0",model_name="m"} 8
"""


def test_the_families_we_need_are_read() -> None:
    reading = parse(TEXT)
    sample = reading.sample
    assert (sample.waiting, sample.running, sample.kv, sample.slots) == (7, 3, 0.25, 8)
    assert (sample.queued_tokens, sample.oldest_wait) == (700, 1.5)
    assert reading.finished == 42
    assert (reading.blocks_live, reading.kv_tokens, reading.weights_bytes) == (25, 1600, 270_000_000)


def test_plain_vllm_is_enough() -> None:
    plain = "\n".join(line for line in TEXT.splitlines() if not line.startswith("sheaf:"))
    reading = parse(plain)
    assert reading.sample.waiting == 7
    assert reading.sample.slots is None
    assert reading.kv_tokens == 1600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no vllm:num_requests_waiting"),
        (TEXT.replace("vllm:kv_cache_usage_perc", "other"), "no vllm:kv_cache_usage_perc"),
        (TEXT.replace(" 7.0", " NaN"), "NaN"),
        (TEXT.replace(" 7.0", " -1"), "-1"),
        (TEXT.replace(" 7.0", " +Inf"), "Inf"),
        (TEXT.replace(" 7.0", " 1e308"), "1e308"),
        (TEXT.replace(" 7.0", " seven"), "seven"),
        (TEXT.replace(" 0.25", " 25"), "kv_cache_usage_perc is 25"),
        ("<html>404</html>", "no vllm:"),
    ],
)
def test_a_metric_that_is_missing_or_odd_is_not_read_as_zero(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        parse(text)


def test_engines_behind_one_address_add_up_but_their_kv_use_is_averaged() -> None:
    two = TEXT + TEXT.replace('engine="0"', 'engine="1"').replace(" 0.25", " 0.75")
    reading = parse(two)
    assert (reading.sample.waiting, reading.sample.running, reading.sample.slots) == (14, 6, 16)
    assert reading.sample.kv == 0.5


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def good(_: web.Request) -> web.StreamResponse:
    return web.Response(text=TEXT)


async def broken(_: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


async def hanging(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)


async def huge(_: web.Request) -> web.StreamResponse:
    """Cut off at the limit, a count could lose its last digits."""
    return web.Response(text=TEXT + "# padding\n" * 200_000)


async def trickle(request: web.Request) -> web.StreamResponse:
    """In two pieces, as a large body arrives."""
    response = web.StreamResponse()
    await response.prepare(request)
    half = len(TEXT) // 2
    await response.write(TEXT[:half].encode())
    await asyncio.sleep(0)
    await response.write(TEXT[half:].encode())
    return response


@pytest.fixture
async def pods() -> AsyncIterator[dict[str, str]]:
    """The metrics' URL of one server each."""
    runners = []
    addresses = {}
    handlers: dict[str, Handler] = {
        "good": good,
        "broken": broken,
        "hanging": hanging,
        "endless": endless,
        "huge": huge,
        "trickle": trickle,
    }
    for name, handler in handlers.items():
        app = web.Application()
        app.router.add_get("/metrics", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        addresses[name] = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    yield {**addresses, "absent": f"http://127.0.0.1:{port}/metrics"}
    for runner in runners:
        await runner.cleanup()


async def test_one_bad_pod_holds_nobody_up(pods: dict[str, str]) -> None:
    scraper = Scraper(timeout=0.5)
    try:
        async with asyncio.timeout(5):
            answers = await scraper.read(pods.items())
    finally:
        await scraper.close()
    assert set(answers) == set(pods)
    assert isinstance(answers["good"], Reading)
    assert isinstance(answers["trickle"], Reading)
    assert answers["broken"] == "HTTP 503"
    assert answers["hanging"] == "no answer within 0.5 s"
    assert answers["huge"] == "more than 2 MB of metrics"
    for bad in ("absent", "endless"):
        assert isinstance(answers[bad], str), bad


async def test_the_hung_pods_of_one_model_take_no_time_of_another(pods: dict[str, str]) -> None:
    """Hundreds that accept and never answer; the other model's are read at once, again and again."""
    scraper = Scraper(timeout=2)
    hung = asyncio.create_task(scraper.read((f"h{n}", pods["hanging"]) for n in range(300)))
    try:
        async with asyncio.timeout(1):
            for _ in range(3):
                answers = await scraper.read([("good", pods["good"])])
                assert isinstance(answers["good"], Reading)
        assert not hung.done()
    finally:
        hung.cancel()
        await asyncio.gather(hung, return_exceptions=True)
        await scraper.close()


async def test_pods_of_one_model_are_asked_a_bounded_number_at_a_time() -> None:
    asked = most = 0

    async def count(_: web.Request) -> web.StreamResponse:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        await asyncio.sleep(0.01)
        asked -= 1
        return web.Response(text=TEXT)

    app = web.Application()
    app.router.add_get("/metrics", count)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    scraper = Scraper(timeout=5)
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    answers = await scraper.read((f"p{n}", url) for n in range(40))
    assert len(answers) == 40
    assert most == scrape.PARALLEL
    await scraper.close()
    await runner.cleanup()


async def test_metrics_over_tls_are_read_whatever_name_the_certificate_has() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("m-predictor.ns.svc").configure_cert(context)
    app = web.Application()
    app.router.add_get("/metrics", good)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    scraper = Scraper(timeout=5)
    answers = await scraper.read([("p", f"https://127.0.0.1:{runner.addresses[0][1]}/metrics")])
    assert isinstance(answers["p"], Reading)
    await scraper.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("ip", "scheme", "url"),
    [
        ("10.0.0.1", None, "http://10.0.0.1:8000/metrics"),
        ("10.0.0.1", "HTTPS", "https://10.0.0.1:8000/metrics"),
        ("fd00::1", "HTTP", "http://[fd00::1]:8000/metrics"),
    ],
)
def test_a_pods_own_probe_says_how_it_is_reached(ip: str, scheme: str | None, url: str) -> None:
    pod = k.pod(ready=True, ip=ip)
    probe = {"httpGet": {"path": "/ready"} | ({"scheme": scheme} if scheme else {})}
    pod["spec"]["containers"] = [{"name": "sidecar"}, {"name": names.CONTAINER, "readinessProbe": probe}]
    assert samples.addresses(Observed(k.owner(), pods=(pod,))) == [("p1", url)]


@pytest.mark.parametrize(
    "line",
    [
        'vllm:num_requests_waiting{model_name="a}b",engine="0"} 7.0',  # a brace in a label's value
        'vllm:num_requests_waiting{model_name="say \\"7\\""} 7.0',
        'vllm:num_requests_waiting{engine="0"}\t7.0',
        'vllm:num_requests_waiting{engine="0"} 7.0 1700000000000',  # with a timestamp
        'vllm:num_requests_waiting{engine="0"} 7e0\r',
        'vllm:num_requests_waiting{model_name="two words",engine="0"} 7.0',
        'vllm:num_requests_waiting{model_name="a\u2028b",engine="0"} 7.0',  # a line separator, but not here
        "vllm:num_requests_waiting 7",
    ],
)
def test_forms_that_the_exposition_format_allows(line: str) -> None:
    text = TEXT.replace('vllm:num_requests_waiting{engine="0",model_name="m"} 7.0', line)
    assert parse(text).sample.waiting == 7


def test_a_longer_name_is_another_family() -> None:
    longer = 'vllm:num_requests_waiting_by_reason{reason="capacity"} 5\n# vllm:num_requests_waiting 9\n'
    assert parse(longer + TEXT).sample.waiting == 7


def test_a_cache_that_is_full_by_rounding_is_full() -> None:
    """Refused, the replica would count as silent just when another one is needed."""
    assert parse(TEXT.replace(" 0.25", " 1.0000000000000002")).sample.kv == 1.0
