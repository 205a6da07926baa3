"""Checkpoints in GPTQ, AWQ and packed integers of compressed-tensors: written here after the formats' own
descriptions, number by number, and held to the matrices that they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from plan_driver import PlanDriver
from safetensors.torch import load_file, save_file
from sheaf_runtime.models.compressed import read_compressed
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.packed import AWQ, GPTQ, PackedCheckpoint, PackQuantized
from sheaf_runtime.models.packed_config import read_awq, read_gptq
from sheaf_runtime.models.schemes import GROUP
from tiny_families import write_tiny
from torch import Tensor

Array = npt.NDArray[np.int64]
SHAPE = {"head_dim": 16, "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256}
PROMPT = [7 + 5 * i % 211 for i in range(40)]


@dataclass
class Made:
    """A matrix in integers: ``weight[n, k] = (q - z[n, g]) * s[n, g]`` where ``g`` is column k's group."""

    q: Array  # [N, K], from 0 on
    z: Array  # [N, G]
    s: Tensor  # [N, G], float16
    group: Array  # [K]

    @property
    def weight(self) -> Tensor:
        steps = torch.from_numpy(self.q - self.z[:, self.group]).float()
        return steps * self.s.float()[:, torch.from_numpy(self.group)]


def make(weight: Tensor, bits: int, size: int, *, symmetric: bool, order: bool, seed: int) -> Made:
    """About what ``weight`` is."""
    rng = np.random.default_rng(seed)
    rows, columns = weight.shape
    size = columns if size == -1 else size
    groups, most = -(-columns // size), (1 << bits) - 1
    group = np.arange(columns) // size
    if order:
        group = rng.permutation(group)
    s = (weight.abs().amax(1, keepdim=True) / (most / 2)).half().expand(-1, groups).contiguous()
    s = (s * torch.from_numpy(rng.uniform(0.8, 1.2, (rows, groups))).half()).half()
    z = np.full((rows, groups), 1 << bits - 1) if symmetric else rng.integers(1, most, (rows, groups))
    steps = (weight / s.float()[:, torch.from_numpy(group)]).round().long().numpy()
    return Made((steps + z[:, group]).clip(0, most), z, s, group)


def words(values: Array, bits: int) -> Tensor:
    """Of the last dimension, the first lowest."""
    each = 32 // bits
    whole = (values.reshape(*values.shape[:-1], -1, each) << bits * np.arange(each)).sum(-1)
    return torch.from_numpy(whole.astype(np.uint32).view(np.int32))


def gptq(made: Made, bits: int, *, offset: int = 1, order: bool = False) -> dict[str, Tensor]:
    tensors = {
        "qweight": words(made.q, bits).T.contiguous(),
        "qzeros": words(made.z.T - offset, bits),
        "scales": made.s.T.contiguous(),
    }
    return tensors | {"g_idx": torch.from_numpy(made.group).int()} if order or offset else tensors


def awq(made: Made, bits: int) -> dict[str, Tensor]:
    def beside(values: Array) -> Tensor:
        eights = values.reshape(len(values), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(eights.reshape(len(values), -1), bits)

    return {"qweight": beside(made.q.T), "qzeros": beside(made.z.T), "scales": made.s.T.contiguous()}


def pack_quantized(made: Made, bits: int, *, symmetric: bool, order: bool) -> dict[str, Tensor]:
    tensors = {
        "weight_packed": words(made.q, bits),
        "weight_scale": made.s,
        "weight_shape": torch.tensor(made.q.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = words(made.z.T, bits).T.contiguous()
    if order:
        tensors["weight_g_idx"] = torch.from_numpy(made.group).int()
    return tensors


@dataclass(frozen=True)
class Case:
    name: str
    config: dict[str, Any]
    pack: Callable[[Made], dict[str, Tensor]]
    bits: int = 4
    size: int = 128
    symmetric: bool = True
    order: bool = False


def gptq_case(name: str, **given: Any) -> Case:
    offset = given.pop("offset", 1)
    case = Case(name, {}, lambda made: {}, **given)
    config = {
        "quant_method": "gptq",
        "bits": case.bits,
        "group_size": case.size,
        "desc_act": case.order,
        "sym": case.symmetric,
        "checkpoint_format": "gptq" if offset else "gptq_v2",
    }
    return Case(name, config, lambda made: gptq(made, case.bits, offset=offset, order=case.order), **given)


def ct_config(bits: int, size: int, *, symmetric: bool, order: bool) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "int",
        "strategy": "channel" if size == -1 else "group",
        "group_size": None if size == -1 else size,
        "symmetric": symmetric,
        "dynamic": False,
        "actorder": "group" if order else None,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def ct_case(name: str, **given: Any) -> Case:
    case = Case(name, {}, lambda made: {}, **given)
    config = ct_config(case.bits, case.size, symmetric=case.symmetric, order=case.order)

    def pack(made: Made) -> dict[str, Tensor]:
        return pack_quantized(made, case.bits, symmetric=case.symmetric, order=case.order)

    return Case(name, config, pack, **given)


AWQ_CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
CASES = [
    gptq_case("gptq"),
    gptq_case("gptq-zeros", symmetric=False, size=64),
    gptq_case("gptq-order", order=True),
    gptq_case("gptq-32", size=32),
    gptq_case("gptq-rows", size=-1),
    gptq_case("gptq-8", bits=8),
    gptq_case("gptq-8-zeros", bits=8, symmetric=False),
    gptq_case("gptq-2", bits=2, size=64),
    gptq_case("gptq-v2", offset=0, symmetric=False),
    Case("awq", AWQ_CONFIG, lambda made: awq(made, 4), size=64, symmetric=False),
    Case("awq-128", AWQ_CONFIG | {"group_size": 128}, lambda made: awq(made, 4), symmetric=False),
    ct_case("w4a16"),
    ct_case("w4a16-zeros", symmetric=False, size=64),
    ct_case("w4a16-order", order=True),
    ct_case("w4a16-rows", size=-1),
    ct_case("w8a16-groups", bits=8, size=32),
]


def is_linear(name: str, tensor: Tensor) -> bool:
    return ".layers." in name and tensor.dim() == 2 and "gate.weight" not in name


def rewrite(folder: Path, change: Callable[[str, Tensor], dict[str, Tensor]], config: dict[str, Any]) -> None:
    for path in folder.glob("*.safetensors"):
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(path).items():
            tensors |= {key: value.contiguous() for key, value in change(name, tensor).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    where = {name: path.name for path in folder.glob("*.safetensors") for name in load_file(path)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def written(
    tmp_path: Path, family: str, case: Case, quantized: Callable[[str, Tensor], bool] = is_linear
) -> tuple[Path, Path]:
    """(the packed folder, one with the floats that it means)."""
    folders = [write_tiny(tmp_path / kind, family, tie_word_embeddings=False, **SHAPE) for kind in "pf"]
    modules: dict[str, Made] = {}

    def matrix(name: str, tensor: Tensor) -> Made:
        seed = len(modules)
        options: dict[str, Any] = {"symmetric": case.symmetric, "order": case.order, "seed": seed}
        return modules.setdefault(name, make(tensor, case.bits, case.size, **options))

    def pack(name: str, tensor: Tensor) -> dict[str, Tensor]:
        if not quantized(name, tensor):
            return {name: tensor}
        module = name.removesuffix(".weight")
        return {f"{module}.{part}": t for part, t in case.pack(matrix(name, tensor)).items()}

    def floats(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {name: modules[name].weight if name in modules else tensor}

    rewrite(folders[0], pack, {"quantization_config": case.config})
    rewrite(folders[1], floats, {})
    assert modules
    return folders[0], folders[1]


def logits(folder: Path, **options: Any) -> Tensor:
    driver = PlanDriver(str(folder), block_size=16, **options)
    request = driver.add(PROMPT)
    driver.generate([request], 1, chunk=17)
    return torch.stack(request.logits)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_is_the_matrices_that_it_means(family: str, case: Case, tmp_path: Path) -> None:
    """To the bit in torch's floats; on the CPU kernels, which round activations, about as int8 is."""
    folder, meant = written(tmp_path, family, case)
    floats = logits(meant, attention_backend="torch")
    assert torch.equal(logits(folder, attention_backend="torch"), floats)
    assert 0 < (logits(folder, attention_backend="cpu") - floats).std() < 0.1 * floats.std()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_four_bits_stay_four_bits(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where groups are multiples of 64 columns in their order; the same bits as in int8 then."""
    folder, _ = written(tmp_path, "llama", case)
    with caplog.at_level("INFO"):
        made = logits(folder, attention_backend="cpu")
    four = case.bits == 4 and not case.order and case.size != 32
    assert f"packed integers become {'int4' if four else 'int8'}" in caplog.text
    monkeypatch.setattr(PackedCheckpoint, "_has_whole_groups", lambda *_: False)
    assert torch.equal(logits(folder, attention_backend="cpu"), made)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_int8_says_the_same_numbers(case: Case) -> None:
    torch.manual_seed(0)
    made = make(
        torch.randn(32, 256), case.bits, case.size, symmetric=case.symmetric, order=case.order, seed=3
    )
    given = case.pack(made)
    stored = read_config_of(case.config)
    assert isinstance(stored, (GPTQ, AWQ, PackQuantized))
    integers = stored.read(given)
    assert torch.equal(integers.floats(), made.weight)
    steps, scale = integers.int8()
    said = steps.float() * scale.repeat_interleave(GROUP, dim=1)
    exact = not case.order and (case.size == -1 or case.size % GROUP == 0) and case.name != "gptq-8-zeros"
    if exact:
        assert torch.equal(said, made.weight)
    else:
        largest = made.weight.unflatten(1, (-1, GROUP)).abs().amax(2).repeat_interleave(GROUP, dim=1)
        assert ((said - made.weight).abs() <= largest * (0.5 / 127 + 1e-6)).all()
        assert not torch.equal(said, made.weight)


def read_config_of(config: dict[str, Any]) -> Any:
    readers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "gptq": read_gptq,
        "awq": read_awq,
        "compressed-tensors": read_compressed,
    }
    return readers[config["quant_method"]](config)


@pytest.mark.parametrize("columns", [200, 72])
def test_a_last_group_that_is_shorter(columns: int) -> None:
    """200 columns in groups of 128 are 128 and 72, not twice 100."""
    made = make(torch.randn(8, columns), 4, 128, symmetric=True, order=False, seed=1)
    integers = GPTQ(4, 128, 1).read(gptq(made, 4))
    assert torch.equal(integers.floats(), made.weight)
    bare = gptq(made, 4)
    del bare["g_idx"]
    assert torch.equal(GPTQ(4, 128, 1).read(bare).floats(), made.weight)


def test_a_zero_point_of_all_bits_is_sixteen() -> None:
    """The first version stores one less than it means, without turning over."""
    made = Made(np.full((8, 64), 3), np.full((8, 1), 16), torch.ones(8, 1).half(), np.zeros(64, np.int64))
    assert (GPTQ(4, None, 1).read(gptq(made, 4)).floats() == 3 - 16).all()


@pytest.mark.parametrize("told", [None, 0, -1])
def test_an_order_that_says_nothing(told: int | None) -> None:
    """exllama#44, neural-compressor#2204, llm-compressor#1780: zeros, or -1, for every column."""
    made = make(torch.randn(8, 256), 4, 64, symmetric=False, order=False, seed=1)
    tensors = gptq(made, 4)
    if told is None:
        del tensors["g_idx"]
    else:
        tensors["g_idx"] = torch.full_like(tensors["g_idx"], told)
    assert torch.equal(GPTQ(4, 64, 1).read(tensors).floats(), made.weight)


def test_the_second_version_under_the_name_of_the_first() -> None:
    """vllm#38966: every weight is off by a whole step, and the model says one token for ever."""
    made = make(torch.randn(8, 256), 4, 64, symmetric=True, order=False, seed=1)
    for named in (0, 1):
        for is_ in (0, 1):
            read = GPTQ(4, 64, named).read(gptq(made, 4, offset=is_))
            assert torch.equal(read.floats(), made.weight)


def test_zero_points_that_are_there_count() -> None:
    """llm-compressor#2255: a config that says symmetric beside them."""
    made = make(torch.randn(8, 256), 4, 64, symmetric=False, order=False, seed=1)
    tensors = pack_quantized(made, 4, symmetric=False, order=False)
    assert torch.equal(PackQuantized(4, 64, symmetric=True).read(tensors).floats(), made.weight)
    del tensors["weight_zero_point"]
    with pytest.raises(KeyError, match="weight_zero_point"):
        PackQuantized(4, 64, symmetric=False).read(tensors)


@pytest.mark.parametrize("wrong", [-1, 2, 1 << 20])
def test_groups_that_are_not_there(wrong: int) -> None:
    """GPTQModel#2949: read from beyond the scales."""
    tensors = gptq(make(torch.randn(8, 256), 4, 128, symmetric=True, order=True, seed=1), 4)
    tensors["g_idx"][5] = wrong
    with pytest.raises(ValueError, match="groups"):
        GPTQ(4, 128, 1).read(tensors)


def test_layers_that_stay_as_they_are(tmp_path: Path) -> None:
    """``modules_to_not_convert``, ``ignore``, ``-:``: the files say which they are (AutoAWQ#589,
    TensorRT-LLM#1528, sglang#20439)."""

    def some(name: str, tensor: Tensor) -> bool:
        return is_linear(name, tensor) and "layers.1.mlp" not in name

    folder, meant = written(tmp_path, "llama", CASES[9], some)
    floats = logits(meant, attention_backend="torch")
    assert torch.equal(logits(folder, attention_backend="torch"), floats)
    assert (logits(folder, attention_backend="cpu") - floats).std() < 0.1 * floats.std()


def test_a_head_that_is_quantized_too(tmp_path: Path) -> None:
    def with_head(name: str, tensor: Tensor) -> bool:
        return is_linear(name, tensor) or name == "lm_head.weight"

    folder, meant = written(tmp_path, "llama", CASES[0], with_head)
    floats = logits(meant, attention_backend="torch")
    assert torch.equal(logits(folder, attention_backend="torch"), floats)
    for options in ({}, {"quantization": "int8"}):
        made = logits(folder, attention_backend="cpu", **options)
        assert (made - floats).std() < 0.1 * floats.std()


def test_the_format_may_be_named(tmp_path: Path) -> None:
    """As vLLM's users do; another one than the files have is refused."""
    folder, _ = written(tmp_path, "llama", CASES[0])
    assert torch.equal(logits(folder, quantization="gptq"), logits(folder))
    with pytest.raises(UnsupportedModelError, match="--quantization awq: the checkpoint is gptq"):
        logits(folder, quantization="awq")


def test_experts_become_floats(tmp_path: Path) -> None:
    folder, meant = written(tmp_path, "mixtral", CASES[0])
    for backend in ("torch", "cpu"):
        assert torch.equal(
            logits(folder, attention_backend=backend), logits(meant, attention_backend=backend)
        )


def test_adapters_get_floats(tmp_path: Path) -> None:
    folder, meant = written(tmp_path, "llama", CASES[0])
    options = {"attention_backend": "cpu", "enable_lora": True}
    assert torch.equal(logits(folder, **options), logits(meant, **options))


def test_biases_of_zeros_that_no_model_has(tmp_path: Path) -> None:
    """GPTQ's tools write them for every module; others have a place or are refused."""
    folder, meant = written(tmp_path, "llama", CASES[0])
    name = "model.layers.0.self_attn.o_proj.bias"
    rewrite(folder, lambda n, t: {n: t, name: torch.zeros(128)} if n == "model.norm.weight" else {n: t}, {})
    assert torch.equal(logits(folder, attention_backend="torch"), logits(meant, attention_backend="torch"))
    rewrite(folder, lambda n, t: {n: torch.ones(128)} if n == name else {n: t}, {})
    with pytest.raises(
        UnsupportedModelError, match=r"o_proj\.bias, which this architecture has no place for"
    ):
        logits(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, t: {} if n.endswith("q_proj.qzeros") else {n: t}, r"lacks the tensor .*q_proj\.qzeros"),
        (lambda n, t: {n: t[:, :-1] if n.endswith("q_proj.scales") else t}, "q_proj do not fit each other"),
        (lambda n, t: {n: t.long() if n.endswith("q_proj.qweight") else t}, "int32, not torch.int64"),
        (lambda n, t: {n: t + 5 if n.endswith("down_proj.g_idx") else t}, "down_proj do not fit each other"),
    ],
)
def test_files_that_are_damaged(change: Any, words: str, tmp_path: Path) -> None:
    folder, _ = written(tmp_path, "llama", CASES[0])
    rewrite(folder, change, {})
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        logits(folder)
    assert "\n" not in str(caught.value)


GPTQ_CONFIG = CASES[0].config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GPTQ_CONFIG | {"bits": 3}, "bits is 3"),
        (GPTQ_CONFIG | {"bits": None}, "bits is None"),
        (GPTQ_CONFIG | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        (GPTQ_CONFIG | {"is_marlin_format": True}, "checkpoint_format is"),
        (GPTQ_CONFIG | {"group_size": 0}, "group_size is 0"),
        (GPTQ_CONFIG | {"group_size": "128"}, "group_size is '128'"),
        (GPTQ_CONFIG | {"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
        (GPTQ_CONFIG | {"dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic is"),
        (AWQ_CONFIG | {"bits": 8}, "bits is 8"),
        (AWQ_CONFIG | {"version": "gemv"}, "version is 'gemv'"),
        (AWQ_CONFIG | {"zero_point": False}, "zero_point is False"),
        (ct_config(4, 0, symmetric=True, order=False), "weights.group_size is 0"),
        (ct_config(3, 64, symmetric=True, order=False), "weights.num_bits is 3"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"quantization_config: {words}") as caught:
        read_config_of(config)
    assert "\n" not in str(caught.value)


def test_what_says_nothing_is_taken() -> None:
    """Modules that are left out, older names, and sizes that are not named."""
    assert read_gptq({"bits": 4, "dynamic": {"-:.*lm_head": {}}}) == GPTQ(4, 128, 1)
    assert read_awq({"w_bit": 4, "q_group_size": 64, "version": "GEMM"}) == AWQ(64)
    assert read_gptq({"bits": 8, "group_size": -1, "format": "gptq_v2"}) == GPTQ(8, None, 0)
