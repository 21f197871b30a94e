"""What is counted on the meta device is what real models take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf_cli.models import footprint
from rlhf_cli.models.loading import load_causal_lm
from rlhf_cli.recipe.schema import Adapter, Base

H, A, K, INTERMEDIATE, HEADS, LAYERS, VOCABULARY = 64, 64, 32, 128, 4, 2, 64  # as in base_folder
RANK = 4


def counted(folder: Path, adapter: Adapter | None, *, padded: bool = False, **base: str) -> footprint.ModelFootprint:
    return footprint.shape(Base(model=str(folder), **base), adapter, str(folder), padded=padded)


def kept_by(model: nn.Module, rows: int, width: int) -> int:
    """Bytes that autograd keeps of a real forward pass, weights not counted."""
    held = []

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
def test_activations_are_those_that_autograd_keeps(base_folder: Path, adapter: Adapter, whole: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    if not whole:
        settings = LoraConfig(r=RANK, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, settings).base_model.model
    kept = counted(base_folder, None if whole else adapter, dtype="float32").kept
    assert kept.of(3, 50) == pytest.approx(kept_by(model, 3, 50), rel=0.02)
    assert kept.of(1, 200) == pytest.approx(kept_by(model, 1, 200), rel=0.02)


def test_activations_of_a_llama_block_are_those_of_the_formula(base_folder: Path, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(base_folder)
    config.num_hidden_layers = LAYERS + 1
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    fewer, more = (counted(f, Adapter(rank=RANK), dtype="float32").kept for f in (base_folder, tmp_path))
    a_token = 4 * (4 * H + 2 * A + 2 * K + 4 * INTERMEDIATE + HEADS + 7 * RANK + 2)
    assert more.token - fewer.token == a_token
    assert more.pair == fewer.pair == 0  # nothing of the width squared, as the fused kernel keeps it
    masked = counted(base_folder, Adapter(rank=RANK), dtype="float32", padded=True).kept
    assert masked.pair == 4 * LAYERS  # a mask of numbers in each layer


def test_layers_that_compute_again_keep_their_inputs_alone(base_folder: Path, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(base_folder)
    config.num_hidden_layers = LAYERS + 1
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    fewer, more = (counted(f, Adapter(rank=RANK), dtype="float32").recomputed for f in (base_folder, tmp_path))
    assert more.token - fewer.token == 4 * H


@pytest.mark.parametrize(("dtype", "quantize"), [("float32", "none"), ("bfloat16", "none"), ("float32", "nf4")])
def test_weights_are_those_of_the_loaded_base(base_folder: Path, adapter: Adapter, dtype: str, quantize: str) -> None:
    base = Base(model=str(base_folder), dtype=dtype, quantize=quantize)
    found = footprint.shape(base, adapter, str(base_folder), padded=False)
    loaded = load_causal_lm(base, str(base_folder))
    sizes = {id(p): p.untyped_storage().nbytes() for p in loaded.parameters()}
    quantized = [p.quant_state for p in loaded.parameters() if hasattr(p, "quant_state")]
    scales = sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in quantized)
    assert bool(quantized) == (quantize == "nf4")
    assert found.weights == pytest.approx(sum(sizes.values()) + scales, rel=0.02)


def test_what_a_role_trains_and_caches_is_counted(base_folder: Path, adapter: Adapter) -> None:
    found = counted(base_folder, adapter, dtype="float32")
    numbers = (
        RANK * LAYERS * ((H + A) + 2 * (H + K) + (A + H) + 2 * (H + INTERMEDIATE) + (INTERMEDIATE + H))
    )  # A and B of seven layers
    assert found.trained == 4 * numbers
    assert found.cache == 4 * LAYERS * 2 * K  # keys and values
    assert found.vocab_size == VOCABULARY
    whole = counted(base_folder, None, dtype="bfloat16")
    assert whole.trained == 4 * LlamaForCausalLM.from_pretrained(base_folder).num_parameters()


def test_a_container_has_what_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr(footprint, "LIMITS", (str(tmp_path / "max"), str(tmp_path / "none")))
    machine = footprint.capacity(torch.device("cpu"))
    assert machine > 1e8
    monkeypatch.setattr(footprint, "LIMITS", (str(tmp_path / "max"), str(tmp_path / "limit")))
    assert footprint.capacity(torch.device("cpu")) == 1e6
