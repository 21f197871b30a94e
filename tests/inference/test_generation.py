"""Test generation: what is sampled, where a response ends, and that batching changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation import utils as generation_utils

from rlhf_cli.data import chat_template
from rlhf_cli.errors import DivergedError
from rlhf_cli.inference import generation
from rlhf_cli.inference.stopping import StoppingRules
from tests.support.families import MakeFamily
from tests.support.issues import raises_issue
from tests.support.tiny_policy import EOS, PAD, VOCABULARY, Ragged


class StopIds(StoppingRules):
    """End tokens without a tokenizer."""

    def __init__(self, *ids: int) -> None:
        self.ids, self.strings = ids, ()


NEARLY_GREEDY = 1e-4  # a temperature


def generate(model: PreTrainedModel, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Generate up to 6 tokens in batches of 3, nearly greedily, unless options say otherwise."""
    defaults: dict[str, Any] = {"pad_id": PAD, "stops": StopIds(EOS), "max_new_tokens": 6, "batch_size": 3}
    return generation.generate(model, prompts, **{**defaults, "temperature": NEARLY_GREEDY, **options})


def generate_single(model: PreTrainedModel, prompt: list[int], stop_ids: Sequence[int], count: int) -> list[int]:
    """Generate greedily for one prompt, with plain forward passes."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


@pytest.fixture
def model(base_folder: Path) -> PreTrainedModel:
    """Return the tiny base."""
    return AutoModelForCausalLM.from_pretrained(base_folder)


@pytest.fixture
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of 28 words."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    chat_template.prepare(tokenizer, "auto")
    return tokenizer


def test_generate_padded_batches_equal_single_prompts_in_order(model: PreTrainedModel, ragged: Ragged) -> None:
    prompts, _ = ragged
    expected = [generate_single(model, prompt, [EOS], 6) for prompt in prompts]
    assert len({tuple(response) for response in expected}) > 2  # the prompts matter
    assert generate(model, prompts) == expected


def test_generate_several_stop_ids_ends_at_the_first(model: PreTrainedModel, ragged: Ragged) -> None:
    prompts, _ = ragged
    free = generate(model, prompts)
    stop_ids = [free[0][2], free[3][1]]  # tokens in the middle of responses
    stops = StopIds(*stop_ids)
    stopped = generate(model, prompts, stops=stops)
    assert stopped == [stops.trim(generate_single(model, prompt, stop_ids, 6)) for prompt in prompts]
    assert any(len(response) < 6 and response[-1] in stop_ids for response in stopped)


def test_generate_pad_equal_to_end_token_gives_same_responses(model: PreTrainedModel, ragged: Ragged) -> None:
    prompts, _ = ragged
    stop_id = generate(model, prompts)[0][1]
    by_pad, by_stop = (generate(model, prompts, pad_id=pad, stops=StopIds(stop_id)) for pad in (PAD, stop_id))
    assert by_pad == by_stop
    assert any(len(response) < 6 for response in by_pad)


def test_generate_rows_that_ended_leave_the_batch_without_changing_the_others(
    model: PreTrainedModel, ragged: Ragged, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ragged[0] * 3
    free = [generate_single(model, prompt, [], 12) for prompt in prompts]
    stops = StopIds(*{free[0][1], free[1][4], free[2][8]})  # responses of many lengths
    expected = [generate_single(model, prompt, stops.ids, 12) for prompt in prompts]
    assert len({len(response) for response in expected}) > 3
    batch_sizes: list[int] = []
    library_generate = model.generate

    def count_rows(**options: Any) -> object:
        batch_sizes.append(len(options["input_ids"]))
        return library_generate(**options)

    monkeypatch.setattr(model, "generate", count_rows)
    assert generate(model, prompts, stops=stops, max_new_tokens=12, batch_size=24) == expected
    assert batch_sizes[0] == 24
    assert len(batch_sizes) > 1
    assert batch_sizes[1] <= 12


def test_generate_stop_string_ends_responses_that_contain_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ragged: Ragged
) -> None:
    prompts, _ = ragged
    free = [generate_single(model, prompt, [EOS], 8) for prompt in prompts]
    row, start = next(
        (i, j) for i, ids in enumerate(free) for j in range(1, 6) if ids[j] != ids[j - 1] and min(ids[: j + 2]) > 3
    )
    phrase = tokenizer.decode(free[row][start : start + 2])  # two words in the middle of a response
    stops = StoppingRules(tokenizer, [phrase])
    found = generate(model, prompts, stops=stops, max_new_tokens=8, batch_size=8)
    assert found[row] == free[row][: start + 2]
    assert stops.text(found[row]).strip() == tokenizer.decode(free[row][:start])
    assert not stops.is_truncated(found[row])
    for response, whole in zip(found, free, strict=True):
        if phrase not in tokenizer.decode(whole):
            assert response == whole
            assert stops.is_truncated(response) == (whole[-1] != EOS)


def test_generate_ignores_and_restores_the_models_generation_config(model: PreTrainedModel, ragged: Ragged) -> None:
    prompts, _ = ragged
    torch.manual_seed(0)
    expected = generate(model, prompts, temperature=1.0)
    own = GenerationConfig(do_sample=True, repetition_penalty=9.0, top_k=1, min_p=0.9, suppress_tokens=[5, 6, 7, 8])
    model.generation_config = own
    torch.manual_seed(0)
    assert generate(model, prompts, temperature=1.0) == expected
    assert model.generation_config is own


def test_generate_samples_follow_softmax_at_temperature(model: PreTrainedModel) -> None:
    prompt, count = [5, 9, 11], 4000
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / 0.7, dim=-1)
    torch.manual_seed(0)
    responses = generate(model, [prompt] * count, temperature=0.7, max_new_tokens=1, batch_size=count)
    drawn = Counter(response[0] for response in responses)
    for token in range(VOCABULARY):
        p = float(expected[token])
        assert abs(drawn[token] / count - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-3  # five standard errors


def test_generate_vocabulary_above_default_top_k_reaches_every_token() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=120, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)  # nearly uniform: fresh weights are small
    responses = generate(model, [[5]] * 4000, temperature=1.0, max_new_tokens=1, batch_size=4000)
    # 4000 draws miss one of 120 tokens with probability 1e-12.
    assert len({response[0] for response in responses}) == 120


def test_generate_turns_dropout_off_and_restores_the_mode(base_folder: Path, ragged: Ragged) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, attention_dropout=0.9).train()
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    prompts, _ = ragged
    assert generate(model, prompts) == generate(plain, prompts)
    assert model.training


@pytest.mark.parametrize("pad_is_end", [False, True])
def test_generate_stop_that_is_noticed_one_step_late_cuts_nothing_off(
    model: PreTrainedModel, ragged: Ragged, monkeypatch: pytest.MonkeyPatch, pad_is_end: bool
) -> None:
    """As on MPS: `generate` runs one step more and undoes it. Half of the batch ends first, and its pads follow."""
    prompts = ragged[0] * 2
    free = [generate_single(model, prompt, [], 12) for prompt in prompts]
    stops = StopIds(*{free[0][1], free[1][4], free[2][8]})  # responses of many lengths
    options: dict[str, Any] = {"stops": stops, "max_new_tokens": 12, "batch_size": 16}
    options["pad_id"] = free[1][4] if pad_is_end else PAD
    expected = [generate_single(model, prompt, stops.ids, 12) for prompt in prompts]
    assert len({len(response) for response in expected}) > 2
    late: list[int] = []

    class LateStop(generation_utils.DeferredStopCheck):
        def finish(self) -> int:
            late.append(super().finish())
            return late[-1]

    monkeypatch.setattr(torch, "Event", mock.MagicMock())  # a CPU has none
    monkeypatch.setattr(LateStop, "is_supported", staticmethod(lambda *_, **__: True))
    monkeypatch.setattr(generation_utils, "DeferredStopCheck", LateStop)
    assert generate(model, prompts, **options) == expected
    assert late[0] == 1


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(8, 3, [2, 3, 3]), (8, 8, [8]), (8, 5, [4, 4])])
def test_generate_batches_have_about_the_same_size(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, count: int, batch_size: int, sizes: list[int]
) -> None:
    found: list[int] = []
    library_generate = model.generate

    def count_rows(**options: Any) -> object:
        found.append(len(options["input_ids"]))
        return library_generate(**options)

    monkeypatch.setattr(model, "generate", count_rows)
    generate(model, [[5, 6]] * count, batch_size=batch_size, max_new_tokens=1)
    assert found == sizes


def test_generate_stop_strings_decode_a_window_of_unended_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ragged: Ragged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step decodes at most the window of each row that still runs: linear in the tokens, not quadratic."""
    steps = 40
    stops = StoppingRules(tokenizer, ["w99"])  # never sampled
    decoded: list[int] = []
    decode = stops.is_complete

    def count_tokens(tokens: Sequence[int]) -> bool:
        decoded.append(len(tokens))
        return decode(tokens)

    monkeypatch.setattr(stops, "is_complete", count_tokens)
    monkeypatch.setattr(stops, "trim", list)
    prompts = ragged[0]
    expected = [generate_single(model, prompt, [EOS], steps) for prompt in prompts]
    found = generate(model, prompts, stops=stops, max_new_tokens=steps, batch_size=8)
    assert [ids[: len(own)] for ids, own in zip(found, expected, strict=True)] == expected
    assert len(decoded) == sum(map(len, expected))  # once per sampled token
    assert max(decoded) == stops.window < steps


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_generate_logits_not_finite_in_one_row_never_reach_multinomial(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    """On CUDA, `multinomial` would end the process with a device-side assert."""
    calls: list[int] = []
    library_multinomial = torch.multinomial

    def multinomial(probabilities: Tensor, **options: Any) -> Tensor:
        assert (probabilities >= 0).all()  # False for NaN
        assert probabilities.isfinite().all()
        calls.append(1)
        return library_multinomial(probabilities, **options)

    def damage(_module: object, _args: object, output: Any) -> Any:
        if len(calls) == 2:
            output.logits[1, -1, 7] = bad
        return output

    monkeypatch.setattr(torch, "multinomial", multinomial)
    model.register_forward_hook(damage)
    with raises_issue("training.non-finite", error=DivergedError):
        generate(model, [[5], [6], [7]], stops=StopIds(), max_new_tokens=50, temperature=1.0)
    assert len(calls) == 3  # it stops with the step that failed


def test_generate_token_with_logit_of_minus_infinity_is_never_sampled(model: PreTrainedModel) -> None:
    def forbid(_module: object, _args: object, output: Any) -> Any:
        output.logits[..., : VOCABULARY - 1] = -torch.inf
        return output

    model.register_forward_hook(forbid)
    assert generate(model, [[5]], stops=StopIds(), temperature=1.0) == [[VOCABULARY - 1] * 6]


def test_generate_non_finite_logits_raises_issue(model: PreTrainedModel) -> None:
    model.lm_head.weight.data.fill_(float("nan"))
    with raises_issue("training.non-finite", error=DivergedError) as issues:
        generate(model, [[5]], temperature=1.0)
    assert issues[0].message == "sampling: the model's logits are not finite."


@pytest.mark.parametrize("name", ["qwen3_5_text", "qwen3_next", "lfm2", "mistral", "gemma3_text", "granitemoehybrid"])
def test_generate_rows_leave_batch_of_linear_or_sliding_attention(make_family: MakeFamily, name: str) -> None:
    """Each prompt of a batch that shrinks is answered as by itself. The rows end at different steps."""
    model = AutoModelForCausalLM.from_pretrained(make_family(name)).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 330, (3 + i % 4,), generator=generator).tolist() for i in range(12)]
    stop_ids = range(0, 330, 12)
    found = generate(model, prompts, stops=StopIds(*stop_ids), max_new_tokens=16, batch_size=12)
    expected = [generate_single(model, prompt, stop_ids, 16) for prompt in prompts]
    assert len({len(response) for response in expected}) > 2
    assert found == expected
