"""What an adapter's folder may hold, and how what cannot be served is refused: by name, in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_driver import PlanDriver
from tiny_adapters import edit_config, edit_weights, reference, with_adapter, write_adapter
from tiny_families import write_tiny

LAYER = "base_model.model.model.layers."
SHAPE = {"head_dim": 16, "num_hidden_layers": 2}
PROMPT = [7 + 5 * i % 211 for i in range(20)]
Q = f"{LAYER}0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"), "llama", **SHAPE)


@pytest.fixture(scope="module")
def driver(model: Path) -> PlanDriver:
    return PlanDriver(str(model), block_size=16, enable_lora=True, max_loras=2, max_lora_rank=8)


def load(driver: PlanDriver, folder: Path) -> None:
    assert driver.model.adapters is not None
    driver.model.adapters.load(1, str(folder))


def renamed(old: str, new: str) -> Callable[[Any], Any]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda tensors: tensors | {name: change(tensors[name])}


def spoiled(value: float) -> Callable[[Any], Any]:
    def spoil(tensor: Any) -> Any:
        tensor[1, 2] = value
        return tensor

    return changed(Q, spoil)


def test_each_way_of_saying_it_is_what_peft_makes_of_it(model: Path, tmp_path: Path) -> None:
    """TensorRT-LLM 1668, vLLM 10798 (rank-stabilized scale); SGLang's sets of modules written as one word."""
    forms: list[dict[str, Any]] = [
        {"use_rslora": True, "r": 6},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["0.self_attn.q_proj"]},
        {"rank_pattern": {"q_proj": 1, "mlp.up_proj": 5}, "alpha_pattern": {"layers.1.mlp.down_proj": 32}},
        {"lora_alpha": 0},
    ]
    driver = PlanDriver(str(model), block_size=16, enable_lora=True, max_loras=len(forms))
    assert driver.model.adapters is not None
    folders = [write_adapter(tmp_path / str(i), model, seed=i, **form) for i, form in enumerate(forms)]
    for id_, folder in enumerate(folders):
        driver.model.adapters.load(id_, str(folder))
    requests = [driver.add(PROMPT, adapter=id_) for id_ in range(len(forms))]
    driver.generate(requests, 3)
    for request, folder in zip(requests, folders, strict=True):
        tokens, logits = reference(with_adapter(model, folder), PROMPT, 3)
        assert request.output == tokens
        torch.testing.assert_close(torch.stack(request.logits), logits, rtol=1e-3, atol=1e-3)


def test_names_of_a_decoder_saved_without_its_head_are_the_same(
    driver: PlanDriver, model: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", model)
    edit_weights(folder, renamed("model.model.layers", "model.layers"))
    load(driver, folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "LOHA"}, "peft_type is LOHA; only LORA"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"bias": "all"}, "bias is all; only none"),
        ({"lora_bias": True}, "lora_bias is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is not supported"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is not supported"),
        ({"target_parameters": ["experts.gate_up"]}, "target_parameters is not supported"),
        ({"a_key_of_tomorrow": {"x": 1}}, "a_key_of_tomorrow is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa, which changes the model's own"),
        ({"layers_to_transform": [0, 2]}, "names layer 2; the model has layers 0 to 1"),
        ({"layers_to_transform": [0]}, "which target_modules does not name"),
        ({"r": 8}, r"q_proj.lora_A.weight is \[4, 48\], but .* make it \[8, 48\]"),
        ({"r": 9}, r"the rank of .* is 9, above --max-lora-rank \(8\)"),
        ({"r": "4"}, "r must be a whole number"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
        ({"lora_alpha": math.inf}, "lora_alpha must be a number"),
        ({"target_modules": ["q_proj"]}, "holds .*, which target_modules does not name"),
        ({"target_modules": None}, "target_modules must be a list"),
        ({"target_modules": "(q_proj"}, "is no regular expression"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern must be an object"),
    ],
)
def test_what_the_config_says_is_refused_by_name(
    changes: dict[str, Any], why: str, driver: PlanDriver, model: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", model)
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=why) as refused:
        load(driver, folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        # vLLM 34186, 48019, 34591, 41754: other prefixes, and the base model's answers without a word.
        (
            renamed("model.model.layers", "model.model.language_model.layers"),
            "lacks lora_A of model.layers.0",
        ),
        (lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 48)}, "lm_head.*no place"),
        (
            lambda t: t | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 9)},
            "no place",
        ),
        (
            lambda t: t | {f"{LAYER}7.mlp.up_proj.lora_A.weight": torch.ones(4, 48)},
            "place",
        ),
        (lambda t: {n: v for n, v in t.items() if n != Q}, "lacks lora_A of model.layers.0.self_attn.q_proj"),
        (lambda t: {}, "lacks lora_A"),
        (changed(Q, lambda a: a[:, :40].contiguous()), r"is \[4, 40\], but the model and the rank make it"),
        (changed(Q, lambda a: a.to(torch.int8)), "dtype torch.int8: quantized adapters"),
        (spoiled(math.nan), "not finite numbers"),
        (spoiled(math.inf), "not finite numbers"),
    ],
)
def test_what_the_file_holds_is_refused_by_name(
    change: Callable[[Any], Any], why: str, driver: PlanDriver, model: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", model)
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=why):
        load(driver, folder)


def test_an_adapter_that_changes_nothing_is_refused(driver: PlanDriver, model: Path, tmp_path: Path) -> None:
    """vLLM 55193: served as the base model without a word."""
    folder = write_adapter(tmp_path / "a", model)
    edit_weights(folder, lambda tensors: {})
    edit_config(folder, target_modules=["c_attn"])
    with pytest.raises(ValueError, match="it changes no layer of this model"):
        load(driver, folder)


def test_folders_that_are_none(driver: PlanDriver, model: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", model)
    weights = folder / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load(driver, folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="is a pickle, which is never read"):
        load(driver, folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"No adapter found: .* has no adapter_model.safetensors"):
        load(driver, folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load(driver, folder)
    with pytest.raises(ValueError, match="No adapter found: org/name"):
        load(driver, Path("org/name"))


def test_weights_beyond_the_range_of_float16(model: Path, tmp_path: Path) -> None:
    driver = PlanDriver(
        str(model), block_size=16, enable_lora=True, dtype="float16", attention_backend="torch"
    )
    folder = write_adapter(tmp_path / "a", model, lora_alpha=10**7)
    with pytest.raises(ValueError, match=r"beyond the range of torch.float16"):
        load(driver, folder)


def test_models_that_take_no_adapters(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--enable-lora needs a model of our own table"):
        PlanDriver(str(model), block_size=16, enable_lora=True, model_impl="transformers")
    with pytest.raises(ValueError, match="--enable-lora needs layers in floats"):
        PlanDriver(str(model), block_size=16, enable_lora=True, quantization="int8")
    with pytest.raises(ValueError, match="--enable-lora is for models that generate text"):
        PlanDriver(str(model), block_size=16, enable_lora=True, runner="pooling")


def test_attention_of_a_model_of_experts_can_be_adapted_and_its_experts_cannot(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model", "qwen3-moe", **SHAPE)
    driver = PlanDriver(str(model), block_size=16, enable_lora=True)
    folder = write_adapter(tmp_path / "a", model, target_modules=["q_proj", "v_proj", "o_proj"])
    load(driver, folder)
    request = driver.add(PROMPT, adapter=1)
    driver.generate([request], 3)
    assert request.output == reference(with_adapter(model, folder), PROMPT, 3)[0]
    expert = f"{LAYER}0.mlp.experts.0.up_proj.lora_A.weight"
    edit_weights(folder, lambda tensors: tensors | {expert: torch.ones(4, 48)})
    with pytest.raises(ValueError, match="not embeddings, heads or experts"):
        load(driver, folder)
