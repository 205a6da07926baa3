"""``sheaf serve``'s flags, its refusals and its exit codes."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_folders import byte_level, write_folder
from sheaf_runtime.config import EngineConfig, PoolerConfig, ServerConfig
from sheaf_runtime.flags.parser import OptionError
from sheaf_runtime.server.launch import main
from sheaf_runtime.server.options import parse, parser
from sheaf_runtime.server.vllm_flags import ABSENT


def test_defaults_are_those_of_the_configurations() -> None:
    assert parse(["/models/a"]) == (EngineConfig(model="/models/a"), ServerConfig())


def test_every_flag_arrives() -> None:
    engine, server = parse(
        [
            "m",
            "--host",
            "::1",
            "--port",
            "81",
            "--served-model-name",
            "a",
            "b",
            "--max-model-len",
            "64",
            "--dtype",
            "half",
            "--device",
            "cpu",
            "--attention-backend",
            "torch",
            "--block-size",
            "8",
            "--gpu-memory-utilization",
            "0.5",
            "--kv-cache-memory",
            "2GiB",
            "--num-gpu-blocks-override",
            "9",
            "--max-num-seqs",
            "3",
            "--max-num-batched-tokens",
            "77",
            "--max-waiting-requests",
            "5",
            "--max-waiting-tokens",
            "6",
            "--no-enable-prefix-caching",
            "--quantization",
            "none",
            "--kv-cache-dtype",
            "auto",
            "--tensor-parallel-size",
            "1",
            "--seed",
            "4",
            "--api-key",
            "k",
            "--chat-template",
            "t.jinja",
            "--drain-timeout",
            "1.5",
            "--lame-duck",
            "0",
            "--stall-timeout",
            "9",
            "--log-level",
            "debug",
            "--pipeline-depth",
            "0",
        ]
    )
    assert engine == EngineConfig(
        model="m",
        dtype="float16",
        device="cpu",
        attention_backend="torch",
        max_model_len=64,
        block_size=8,
        gpu_memory_utilization=0.5,
        kv_cache_memory=2 * 1024**3,
        num_gpu_blocks_override=9,
        max_num_seqs=3,
        max_num_batched_tokens=77,
        max_waiting_requests=5,
        max_waiting_tokens=6,
        enable_prefix_caching=False,
        pipeline_depth=0,
        seed=4,
    )
    assert server == ServerConfig(
        host="::1",
        port=81,
        served_model_name=("a", "b"),
        api_key=("k",),
        chat_template="t.jinja",
        drain_timeout=1.5,
        lame_duck=0,
        stall_timeout=9,
        log_level="debug",
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("2GiB", 2**31),
        ("1.5g", 1_500_000_000),
        ("500MB", 5 * 10**8),
        ("512 mib", 2**29),
        ("1Ki", 1024),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse(["m", "--kv-cache-memory", text])[0].kv_cache_memory == size


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--quantization", "fp8"],
            "--quantization fp8 is not supported yet; use int8, or leave the flag out",
        ),
        (["--kv-cache-dtype", "fp8"], "use auto"),
        (["--tensor-parallel-size", "2"], "use 1"),
        (["--kv-cache-memory", "lots"], "2GiB"),
        (["--kv-cache-memory", "0"], "2GiB"),
        (["--kv-cache-memory", "1.5.2G"], "2GiB"),
        (["--port", "70000"], "65535"),
        (["--block-size", "-1"], "from 1 to"),
        (["--gpu-memory-utilization", "90"], "at most 1"),
        (["--drain-timeout", "nan"], "seconds"),
        (["--stall-timeout", "0"], "above 0"),
        (["--dtype", "int8"], "invalid choice"),
        (["--no-such-flag"], "unrecognized argument --no-such-flag; --help lists them"),
        (["--max-model", "64"], "unrecognized argument --max-model; did you mean --max-model-len?"),
        (["--max-model=64"], "did you mean --max-model-len?"),
        (["--max_model", "64"], "unrecognized argument --max_model; did you mean --max-model-len?"),
        (["--max_num_seqs 9"], "is one argument with a blank in it"),
        (["-port", "8000"], "did you mean --port?"),
        (["--max-num-batched-token=9"], "did you mean --max-num-batched-tokens?"),
        (["--kv-events-config.topics", "t"], "it is a JSON object of enable_kv_cache_events"),
        (["--max-num-seqs.a", "1"], "unrecognized argument --max-num-seqs.a; --max-num-seqs has no keys"),
        (["--hf-overrides.a"], "argument --hf-overrides.a: expected one argument"),
        (["--hf-overrides.a", "--port", "1"], "argument --hf-overrides.a: expected one argument"),
        (["--hf-overrides.a 5"], "write two arguments, '--hf-overrides.a' and '5'"),
        (["--hf-overrides.", "5"], "write keys with a dot between two of them"),
        (["--hf-overrides.a..b", "5"], "write keys with a dot between two of them"),
        (["--hf-overrides" + 99 * ".a", "5"], "at most 16"),
        (["--hf-overrides.a", "5", "--hf-overrides.a.b", "6"], "a has a value already"),
        (["--hf-overrides.a.b", "6", "--hf-overrides.a", "5"], "a has a value already"),
        (["--hf-overrides.a", "6", "--hf-overrides.a+", "5"], "a has a value already"),
        # MiaAI-Lab#5: quotes that a script put inside the value
        (["--hf-overrides", "'{\"a\": 5}'"], "must be a JSON object"),
        (["--hf-overrides", "[]", "--hf-overrides.a", "5"], "must be a JSON object"),
        (
            ["--override-generation-config.temperature", "-1"],
            "--override-generation-config: temperature must",
        ),
        (["--override-generation-config.max_length", "5"], "max_length is none of temperature, top_p"),
        (["--override-generation-config", '{"top_k": 1.5}'], "--override-generation-config: top_k must"),
        (["--enable-chunked-prefill"], "--enable-chunked-prefill is not supported: leave it out"),
        (["--enable_chunked_prefill"], "--enable_chunked_prefill is not supported: leave it out"),
        (["-tp", "2"], "-tp is not supported"),
        (
            ["--speculative-config={}"],
            "Object missing required field `method`; it is a JSON object of method",
        ),
        (["--speculative-config.method", "eagle3"], "method eagle3 is not supported; use ngram"),
        (["--speculative-config", '{"model": "small"}'], "leave model out, ngram proposes without one"),
        (
            [
                "--speculative-config",
                '{"method": "ngram", "num_speculative_tokens": 3, "parallel_drafting": 1}',
            ],
            "unknown field `parallel_drafting`; it is a JSON object of method, num_speculative_tokens",
        ),
        (
            ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 0}'],
            "--speculative-config: num_speculative_tokens must be from 1 to 64, got 0",
        ),
        (
            [
                "--speculative-config",
                '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}',
                "--speculative-config.prompt_lookup_min",
                "3",
            ],
            "--speculative-config: prompt_lookup_min (3) must be at most prompt_lookup_max (2)",
        ),
        (["--speculative-model", "small"], "write --speculative-config with method ngram"),
        (["--model", "m"], "sheaf serve MODEL"),
        (
            ["--max-num-batched-tokens", "63"],
            "--max-num-batched-tokens (63) must be at least --max-num-seqs (64)",
        ),
        (["--num-gpu-blocks-override", "1"], "--num-gpu-blocks-override must be at least 2, got 1"),
        (["--port 9000"], "write two arguments, '--port' and '9000', or '--port=9000'"),
        ([" --port  9000"], "write two arguments, '--port' and '9000', or '--port=9000'"),
        (["--host", "::1", "--max-num-seqs\t4"], "'--max-num-seqs' and '4'"),
        (["--enable-prefix-caching\n"], "write '--enable-prefix-caching'"),
        (["--port=9000\n"], "write '--port=9000'"),
        (["--max-num-seqs", "9" * 30], "from 1 to 2147483647"),
        (["--max-num-seqs", "9" * 5000], "from 1 to 2147483647"),
        (["--kv-cache-memory", "9" * 19 + "T"], "2GiB"),
        (["--seed", str(2**63)], "64 bits"),
        (["--drain-timeout", "1e300"], "seconds"),
    ],
)
def test_refusals_say_what_to_change(flags: list[str], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse(["m", *flags])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_flag_is_known_or_refused_by_name_but_not_both() -> None:
    assert set(parser().names()) & set(ABSENT) == set()


def test_help_is_in_groups_with_every_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = parser().format_help()
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "positional arguments:",
        "options:",
        "model:",
        "model of the hub, kept in HF_HOME:",
        "embeddings and scores:",
        "hardware and kernels:",
        "memory and prefix cache:",
        "scheduling:",
        "adapters:",
        "API server:",
        "prompts, tool calls and reasoning:",
        "ends and failures:",
        "observability:",
    ]
    assert "--max-num-seqs N                  most requests in a batch (default: 64)\n" in text
    assert "--[no-]access-log" in text
    assert "(default: on)" in text
    assert max(map(len, text.splitlines())) <= 110
    for _, actions in parser().groups():
        assert [a.dest for a in actions if not a.help] == []


def test_of_a_flag_given_twice_the_last_counts() -> None:
    """A ServingRuntime's arguments come first, those of the InferenceService after them."""
    engine, server = parse(
        [
            *("m", "--port", "1", "--served-model-name", "a", "b", "--enable-prefix-caching"),
            *("--port=2", "--served-model-name", "c", "--no-enable-prefix-caching"),
        ]
    )
    assert (server.port, server.served_model_name, engine.enable_prefix_caching) == (2, ("c",), False)


def test_underscores_are_dashes() -> None:
    """As in vLLM, whose users write them so; only in the flag's name."""
    engine, server = parse(
        ["m", "--max_num_seqs=3", "--max_model_len", "64", "--served-model-name", "a_b", "--host=a_b"]
    )
    assert (engine.max_num_seqs, engine.max_model_len) == (3, 64)
    assert (server.served_model_name, server.host) == (("a_b",), "a_b")
    assert parse(["m", "--no_enable_prefix_caching"])[0].enable_prefix_caching is False


@pytest.mark.parametrize(
    ("flags", "overrides"),
    [
        # vllm#17640: automation that knows texts and numbers alone
        (["--hf-overrides.rope_scaling.rope_type", "yarn", "--hf-overrides.rope_scaling.factor=4.0"], None),
        (["--hf_overrides.rope_scaling.rope_type=yarn", "--hf_overrides.rope_scaling.factor", "4.0"], None),
        (['--hf-overrides.rope_scaling={"rope_type": "yarn", "factor": 4.0}'], None),
        # vllm#18208: of two keys in one object the first was lost
        (
            [
                '--hf-overrides={"rope_scaling": {"factor": 4.0}}',
                "--hf-overrides.rope_scaling.rope_type",
                "yarn",
            ],
            None,
        ),
        (
            ["--hf-overrides.a", "true", "--hf-overrides.b", "null", "--hf-overrides.c", "-1"],
            {"a": True, "b": None, "c": -1},
        ),
        (
            ["--hf-overrides.a", '"1"', "--hf-overrides.b", "NaN", "--hf-overrides.c="],
            {"a": "1", "b": "NaN", "c": ""},
        ),
        (["--hf-overrides.a=b=c", "--hf-overrides.d-e", "-x"], {"a": "b=c", "d-e": "-x"}),
        (["--hf-overrides.l+", "a", "--hf-overrides.l+=b,2"], {"l": ["a", "b", 2]}),
        (
            ["--hf-overrides.l+", '"a,b"', '--hf-overrides.l+={"c": 1, "d": 2}'],
            {"l": ["a,b", {"c": 1, "d": 2}]},
        ),
        (["--hf-overrides.a", "1", "--hf-overrides.a", "2"], {"a": 2}),
        (["--hf-overrides.a", "1", "--hf-overrides", '{"b": 2}'], {"b": 2}),
    ],
)
def test_json_by_its_keys(flags: list[str], overrides: dict[str, Any] | None) -> None:
    want = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}} if overrides is None else overrides
    for argv in (["m", *flags], [*flags, "m"], [*flags, "--", "m"]):
        engine, _ = parse(argv)
        assert (engine.model, engine.hf_overrides) == ("m", want)


def test_every_json_flag_by_its_keys(tmp_path: Path) -> None:
    engine, server = parse(
        [
            *("m", "--kv-events-config.enable_kv_cache_events", "true", "--kv-events-config.topic", "t"),
            *("--default-chat-template-kwargs.enable_thinking", "false", "--port", "81"),
            *("--pooler-config.pooling_type", "MEAN", "--runner", "pooling"),
            *("--override-generation-config.temperature", "0.5", "--generation-config", "vllm"),
        ]
    )
    assert (engine.kv_events_config.enable_kv_cache_events, engine.kv_events_config.topic) == (True, "t")
    assert server.default_chat_template_kwargs == {"enable_thinking": False}
    assert (server.override_generation_config, engine.generation_config) == ({"temperature": 0.5}, "vllm")
    assert engine.pooler_config is not None
    assert engine.pooler_config.pooling_type == "MEAN"
    (tmp_path / "flags.yaml").write_text("hf-overrides: {a: 1}\n")
    config = ("--config", str(tmp_path / "flags.yaml"))
    assert parse(["m", *config, "--hf-overrides.b", "2"])[0].hf_overrides == {"b": 2}


def test_a_path_with_dots_is_a_model() -> None:
    for model in ("./--hf-overrides.a", "org/model.v1", "a.b=c"):
        assert parse([model])[0].model == model


def test_texts_with_blanks_are_values() -> None:
    _, server = parse(["m", "--chat-template", "{{ a }} - b", "--api-key=k 1"])
    assert (server.chat_template, server.api_key) == ("{{ a }} - b", ("k 1",))


def test_a_folder_that_is_none_is_a_configuration_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "config.json is missing" in capsys.readouterr().err
    assert main(["m", "--port", "x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_taken_port_is_a_configuration_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path, byte_level())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([str(folder), "--host", "127.0.0.1", "--port", str(port)]) == 2
    assert f"127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err


def test_an_address_of_another_machine_is_a_configuration_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path, byte_level())
    assert main([str(folder), "--host", "192.0.2.1"]) == 2
    assert "choose another --host" in capsys.readouterr().err


def test_the_api_process_imports_no_torch() -> None:
    code = (
        "import sys, sheaf_runtime.cli, sheaf_runtime.server.launch, sheaf_runtime.server.run\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy', 'triton')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pooling_flags_arrive_and_are_refused_by_name() -> None:
    flags = ["--runner", "pooling", "--convert", "embed", "--hf-overrides", '{"is_matryoshka": true}']
    engine, _ = parse(["m", *flags, "--pooler-config", '{"pooling_type": "MEAN", "use_activation": false}'])
    assert (engine.runner, engine.convert, engine.hf_overrides) == (
        "pooling",
        "embed",
        {"is_matryoshka": True},
    )
    assert engine.pooler_config == PoolerConfig(pooling_type="MEAN", use_activation=False)
    for value in ('{"pooling_type": "CLS"}', '{"step_tag_id": 3}', "MEAN"):
        with pytest.raises(OptionError, match="--pooler-config"):
            parse(["m", "--pooler-config", value])


def test_flags_from_a_file(tmp_path: Path) -> None:
    """vllm#43252: --config=FILE was not read; vllm#8947: its place counted; vllm#51401: false was left out;
    vllm#14819: the model had to be on the command line."""
    file = tmp_path / "flags.yaml"
    file.write_text(
        "model: org/model\nport: 81\nserved-model-name: [a, b]\nmax_num_seqs: 3\naccess-log: false\n"
        "no-enable-prefix-caching: true\nenable-auto-tool-choice: false\napi-key: k 1\n"
        "gpu-memory-utilization: 0.5\nhf-overrides: {a: {b: [1]}}\nseed:\n"
        "chat-template: |\n  {{ a }}\n  - b\n"
    )
    for argv in (["--config", str(file)], [f"--config={file}"]):
        engine, server = parse(argv)
        assert (engine.model, engine.max_num_seqs, engine.gpu_memory_utilization) == ("org/model", 3, 0.5)
        assert (engine.enable_prefix_caching, engine.hf_overrides) == (False, {"a": {"b": [1]}})
        assert (server.port, server.access_log, server.api_key) == (81, False, ("k 1",))
        assert (server.served_model_name, server.chat_template) == (("a", "b"), "{{ a }}\n- b\n")
    for argv in (
        ["m", "--served-model-name", "c", "--config", str(file), "--port=82", "--enable-prefix-caching"],
        [f"--config={file}", "--port", "82", "--enable-prefix-caching", "m", "--served-model-name", "c"],
    ):
        engine, server = parse(argv)
        assert (engine.model, engine.enable_prefix_caching, engine.max_num_seqs) == ("m", True, 3)
        assert (server.port, server.served_model_name, server.api_key) == (82, ("c",), ("k 1",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("port: 70000", "65535"),
        ("no-such-flag: 1", "unrecognized argument --no-such-flag"),
        ("speculative_config: {}", "Object missing required field `method`"),
        ("config: b.yaml", "a file cannot name another"),
        ("enable-auto-tool-choice: maybe", "enable-auto-tool-choice"),
        ("access-log: 5", "access-log"),
        ("model: 5\n", "model must be"),
        ("- port", "as port: 8000"),
        ("a: [", "is not YAML"),
        ("\udcff: a", "is not YAML"),
        (None, "No such file"),
        ("max-num-batched-tokens: 63", "must be at least --max-num-seqs (64)"),
    ],
)
def test_a_file_of_flags_that_cannot_be(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "flags.yaml"
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(OptionError) as refused:
        parse(["m", "--config", str(file)])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_without_a_model_needs_one(tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text("port: 81\n")
    with pytest.raises(OptionError, match="MODEL"):
        parse(["--config", str(tmp_path / "flags.yaml")])
    with pytest.raises(OptionError, match="--config"):
        parse(["m", "--config"])


@pytest.mark.parametrize(
    ("given", "meant"), [("gptq_marlin", "gptq"), ("awq_marlin", "awq"), ("None", "none")]
)
def test_what_vllm_calls_a_format(given: str, meant: str) -> None:
    assert parse(["m", "--quantization", given])[0].quantization == meant
