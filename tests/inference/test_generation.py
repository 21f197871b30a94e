"""Generation: what is sampled, where a response ends, and in which order prompts come."""

from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from rlhf_cli.data import chat_template
from rlhf_cli.errors import DivergedError
from rlhf_cli.inference import generation
from rlhf_cli.inference.stopping import StoppingRules
from tests.support.tiny_policy import EOS, PAD, VOCABULARY


class Ids(StoppingRules):
    """End tokens without a tokenizer."""

    def __init__(self, *ids):
        self.ids, self.strings = ids, ()


OPTIONS = {"pad_id": PAD, "stops": Ids(EOS), "max_new_tokens": 6, "batch_size": 3}
NEARLY_GREEDY = 1e-4


@pytest.fixture
def model(base_folder):
    return AutoModelForCausalLM.from_pretrained(base_folder)


def greedy(model, prompt, stop_ids, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


def test_padded_batches_answer_as_each_prompt_alone_in_the_order_of_the_prompts(model, ragged):
    prompts, _ = ragged
    expected = [greedy(model, prompt, [EOS], 6) for prompt in prompts]
    assert len({tuple(e) for e in expected}) > 4  # the prompts matter
    assert generation.generate(model, prompts, temperature=NEARLY_GREEDY, **OPTIONS) == expected


def test_a_response_ends_with_the_first_of_several_stop_ids(model, ragged):
    prompts, _ = ragged
    free = generation.generate(model, prompts, temperature=NEARLY_GREEDY, **OPTIONS)
    stops = [free[0][2], free[3][1]]  # tokens that come up in the middle
    stopped = generation.generate(model, prompts, temperature=NEARLY_GREEDY, **{**OPTIONS, "stops": Ids(*stops)})
    assert stopped == [Ids(*stops).cut(greedy(model, prompt, stops, 6)) for prompt in prompts]
    assert any(len(s) < 6 and s[-1] in stops for s in stopped)


def test_end_token_is_kept_where_pad_is_the_end_token_and_in_the_last_slot():
    assert Ids(EOS).cut([5, 6, EOS, EOS, EOS]) == [5, 6, EOS]
    assert Ids(EOS).cut([5, 6, EOS]) == [5, 6, EOS]
    assert not Ids(EOS).is_truncated([5, 6, EOS])
    assert Ids(EOS).is_truncated([5, 6, 7])


def test_pad_equal_to_end_token_generates_the_same(model, ragged):
    prompts, _ = ragged
    stop = generation.generate(model, prompts, temperature=NEARLY_GREEDY, **OPTIONS)[0][1]
    found = [
        generation.generate(model, prompts, temperature=NEARLY_GREEDY, **{**OPTIONS, "pad_id": pad, "stops": Ids(stop)})
        for pad in (PAD, stop)
    ]
    assert found[0] == found[1]
    assert any(len(response) < 6 for response in found[0])


def test_answers_are_the_same_however_many_rows_have_left_the_batch(model, ragged, monkeypatch):
    """Rows that ended leave; the others go on from a cache that lost those rows, left padding and all."""
    prompts = ragged[0] * 3
    free = [greedy(model, prompt, [], 12) for prompt in prompts]
    stops = Ids(*{free[0][1], free[1][4], free[2][8]})  # answers of many lengths
    expected = [greedy(model, prompt, stops.ids, 12) for prompt in prompts]
    assert len({len(e) for e in expected}) > 3
    widths = []
    sample = model.generate
    monkeypatch.setattr(model, "generate", lambda **kw: widths.append(len(kw["input_ids"])) or sample(**kw))
    options = {**OPTIONS, "stops": stops, "max_new_tokens": 12, "batch_size": 24}
    assert generation.generate(model, prompts, temperature=NEARLY_GREEDY, **options) == expected
    assert widths[0] == 24
    assert len(widths) > 1
    assert widths[1] <= 12


@pytest.fixture
def words(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    chat_template.prepare(tokenizer, "auto")
    return tokenizer


def test_an_answer_ends_where_its_text_holds_a_stop_string(model, words, ragged):
    prompts, _ = ragged
    free = [greedy(model, prompt, [EOS], 8) for prompt in prompts]
    row, at = next(
        (i, j) for i, ids in enumerate(free) for j in range(1, 6) if ids[j] != ids[j - 1] and min(ids[: j + 2]) > 3
    )
    phrase = words.decode(free[row][at : at + 2])  # two words in the middle of an answer
    stops = StoppingRules(words, [phrase])
    options = {**OPTIONS, "stops": stops, "max_new_tokens": 8, "batch_size": 8}
    found = generation.generate(model, prompts, temperature=NEARLY_GREEDY, **options)
    assert found[row] == free[row][: at + 2]
    assert stops.text(found[row]).strip() == words.decode(free[row][:at])
    assert not stops.is_truncated(found[row])
    for answer, whole in zip(found, free, strict=True):
        if phrase not in words.decode(whole):
            assert answer == whole
            assert stops.is_truncated(answer) == (whole[-1] != EOS)


def test_a_stop_string_that_the_prompt_began_is_none(words):
    """`w1 w2` is looked for in the answer alone."""
    assert StoppingRules(words, ["w1 w2"]).cut([6, 7, 5, 6]) == [6, 7, 5, 6]  # w2 w3 w1 w2: only the last two are it
    assert StoppingRules(words, ["w1 w2"]).cut([6, 7, 8]) == [6, 7, 8]


def test_the_models_own_generation_config_changes_nothing(model, ragged):
    prompts, _ = ragged
    torch.manual_seed(0)
    expected = generation.generate(model, prompts, temperature=1.0, **OPTIONS)
    own = GenerationConfig(do_sample=True, repetition_penalty=9.0, top_k=1, min_p=0.9, suppress_tokens=[5, 6, 7, 8])
    model.generation_config = own
    torch.manual_seed(0)
    assert generation.generate(model, prompts, temperature=1.0, **OPTIONS) == expected
    assert model.generation_config is own


def test_samples_follow_the_softmax_at_the_temperature(model):
    prompt = [5, 9, 11]
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / 0.7, dim=-1)
    torch.manual_seed(0)
    options = {**OPTIONS, "max_new_tokens": 1, "batch_size": 4000}
    drawn = Counter(r[0] for r in generation.generate(model, [prompt] * 4000, temperature=0.7, **options))
    for token in range(VOCABULARY):
        p = float(expected[token])
        assert abs(drawn[token] / 4000 - p) < 5 * (p * (1 - p) / 4000) ** 0.5 + 1e-3  # five standard errors


def test_no_token_is_out_of_reach_in_a_vocabulary_above_the_default_top_k():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=120, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)  # nearly uniform: fresh weights are small
    options = {**OPTIONS, "max_new_tokens": 1, "batch_size": 4000}
    drawn = {r[0] for r in generation.generate(model, [[5]] * 4000, temperature=1.0, **options)}
    assert len(drawn) == 120  # one of 120 is missed by 4000 draws with probability 1e-12


def test_dropout_is_off_and_the_mode_is_given_back(base_folder, ragged):
    model = AutoModelForCausalLM.from_pretrained(base_folder, attention_dropout=0.9).train()
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    prompts, _ = ragged
    found = generation.generate(model, prompts, temperature=NEARLY_GREEDY, **OPTIONS)
    assert found == generation.generate(plain, prompts, temperature=NEARLY_GREEDY, **OPTIONS)
    assert model.training


def test_logits_that_are_not_finite_are_told_as_divergence(model):
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(DivergedError, match="logits are not finite"):
        generation.generate(model, [[5]], temperature=1.0, **OPTIONS)


def test_every_prompt_comes_once_an_epoch_in_an_order_that_the_seed_decides():
    order = generation.PromptOrder(10, seed=3)
    taken = [i for _ in range(5) for i in order.take(4)]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]
    assert taken == generation.PromptOrder(10, seed=3).take(20)
    assert taken != generation.PromptOrder(10, seed=4).take(20)
    resumed = generation.PromptOrder(10, seed=3)
    resumed.served = 8
    assert resumed.take(4) == taken[8:12]
