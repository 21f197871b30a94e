"""Test that counts on the meta device equal the memory of real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf_cli.models import footprint
from rlhf_cli.models.footprint import ModelFootprint
from rlhf_cli.models.loading import load_causal_lm
from rlhf_cli.recipe.schema import Adapter, Base
from tests.support.families import MakeFamily
from tests.support.plain_models import base_of

H, A, K, INTERMEDIATE, HEADS, LAYERS, VOCABULARY = 64, 64, 32, 128, 4, 2, 64  # as in base_folder
RANK = 4


def measure(folder: Path, adapter: Adapter | None, *, padded: bool = False, **fields: str) -> ModelFootprint:
    """Measure the model in `folder`."""
    base = Base.model_validate({"model": str(folder), **fields})
    return footprint.measure_footprint(base, adapter, str(folder), padded=padded)


def saved_bytes(model: Any, rows: int, width: int) -> int:
    """Return the bytes that autograd saves in a real forward pass, without weights."""
    held: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.get_decoder()(input_ids=torch.zeros(rows, width, dtype=torch.long), use_cache=False)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    del out
    return sum(size for pointer, size in storages.items() if pointer not in own)


@pytest.mark.parametrize("whole", [False, True])
def test_measure_footprint_saved_activations_equal_those_of_autograd(
    base_folder: Path, adapter: Adapter, whole: bool
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    if not whole:
        settings = LoraConfig(r=RANK, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, settings).base_model.model
    saved = measure(base_folder, None if whole else adapter, dtype="float32").saved_activations
    assert saved.total(3, 50) == pytest.approx(saved_bytes(model, 3, 50), rel=0.02)
    assert saved.total(1, 200) == pytest.approx(saved_bytes(model, 1, 200), rel=0.02)


def test_measure_footprint_llama_block_equals_the_documented_formula(base_folder: Path, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(base_folder)
    config.num_hidden_layers = LAYERS + 1
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    fewer, more = (
        measure(folder, Adapter(rank=RANK), dtype="float32").saved_activations for folder in (base_folder, tmp_path)
    )
    bytes_per_token = 4 * (4 * H + 2 * A + 2 * K + 4 * INTERMEDIATE + HEADS + 7 * RANK + 2)
    assert more.per_token - fewer.per_token == bytes_per_token
    assert more.per_token_pair == fewer.per_token_pair == 0  # the fused kernel saves nothing of the width squared
    masked = measure(base_folder, Adapter(rank=RANK), dtype="float32", padded=True).saved_activations
    assert masked.per_token_pair == 4 * LAYERS  # a mask of numbers in each layer


def test_measure_footprint_checkpointed_layers_save_only_their_inputs(base_folder: Path, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(base_folder)
    config.num_hidden_layers = LAYERS + 1
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    fewer, more = (
        measure(folder, Adapter(rank=RANK), dtype="float32").checkpointed_activations
        for folder in (base_folder, tmp_path)
    )
    assert more.per_token - fewer.per_token == 4 * H


@pytest.mark.parametrize(("dtype", "quantize"), [("float32", "none"), ("bfloat16", "none"), ("float32", "nf4")])
def test_measure_footprint_weights_equal_those_of_the_loaded_base(
    base_folder: Path, adapter: Adapter, dtype: str, quantize: str
) -> None:
    base = Base.model_validate({"model": str(base_folder), "dtype": dtype, "quantize": quantize})
    found = footprint.measure_footprint(base, adapter, str(base_folder), padded=False)
    loaded = load_causal_lm(base, str(base_folder))
    sizes = {id(p): p.untyped_storage().nbytes() for p in loaded.parameters()}
    quantized = [p.quant_state for p in loaded.parameters() if hasattr(p, "quant_state")]
    scales = sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in quantized)
    assert bool(quantized) == (quantize == "nf4")
    assert found.weights == pytest.approx(sum(sizes.values()) + scales, rel=0.02)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["gpt2", "mixtral"])  # transposed layers; experts, which are not quantized
def test_measure_footprint_counts_only_quantized_layers_as_quantized(
    make_family: MakeFamily, adapter: Adapter, name: str, quantize: str
) -> None:
    folder = make_family(name)
    found = measure(folder, adapter, dtype="float32", quantize=quantize)
    loaded = load_causal_lm(base_of(folder, dtype="float32", quantize=quantize), str(folder))
    assert found.weights == pytest.approx(loaded.get_memory_footprint(return_buffers=False), rel=0.02)


def test_measure_footprint_trainable_and_kv_cache_equal_worked_values(base_folder: Path, adapter: Adapter) -> None:
    found = measure(base_folder, adapter, dtype="float32")
    # The matrices A and B of seven layers:
    numbers = RANK * LAYERS * ((H + A) + 2 * (H + K) + (A + H) + 2 * (H + INTERMEDIATE) + (INTERMEDIATE + H))
    assert found.trainable == 4 * numbers
    assert found.kv_cache == 4 * LAYERS * 2 * K  # keys and values
    assert found.vocab_size == VOCABULARY
    whole = measure(base_folder, None, dtype="bfloat16")
    assert whole.trainable == 4 * LlamaForCausalLM.from_pretrained(base_folder).num_parameters()


def test_count_trainable_counts_parameters_by_module(base_folder: Path) -> None:
    adapter = Adapter(rank=RANK, target_modules=["q_proj", "down_proj"])
    counts = footprint.count_trainable(Base(model=str(base_folder)), adapter, str(base_folder))
    assert counts == {"q_proj": RANK * LAYERS * (H + A), "down_proj": RANK * LAYERS * (INTERMEDIATE + H)}
