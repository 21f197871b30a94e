"""A separate reward model with its own tokenizer, compared with plain transformers and TRL."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_cli.data.rows import Message, PromptRow, Text
from rlhf_cli.errors import ModelError
from rlhf_cli.recipe.schema import Base, RewardSource
from rlhf_cli.rewards.base import Completions
from rlhf_cli.rewards.build import (
    build_reward_functions,
    prepare_reward_functions,
    score_completions,
    weighted_sum,
)
from rlhf_cli.rewards.model import ModelScorer, tokenize
from tests.support.issues import raises_issue
from tests.support.tiny_policy import MakeActorCritic

MakeModel = Callable[..., Path]

TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- raise_exception('no system turns') -}}{%- endif -%}"
    "[{{- message['role'] -}}]{{- message['content'] -}}{{- eos_token -}}{{- '\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}[assistant]{%- endif -%}"
)
WORDS = "The sea is blue and the dog was small. Please, thank you; what is two and three? Five!"
PROMPTS = ["What is two?", "The dog", "Please say what the sea is like today, and why that is so:", "?"]
COMPLETIONS = [" Two and two is four.", "", " Blue.", " " + "and three " * 9]
RECIPE = Base(model="unused")


def save_tokenizer(folder: Path, *, bos: bool) -> None:
    """Write a byte-level BPE tokenizer, which has none of the policy's tokens."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[*names.values()], initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator([WORDS], trainer)
    if bos:
        tokens.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokens, chat_template=TEMPLATE, **names).save_pretrained(folder)


def save_encoder_tokenizer(folder: Path) -> None:
    """Write a tokenizer that wraps a text in [CLS] and [SEP]."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *dict.fromkeys(WORDS.lower().split())]
    tokens = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)


@pytest.fixture
def make_scorer(tmp_path: Path) -> MakeModel:
    """Return a function that writes a Llama with one label; `pad` is the id in its config."""

    def make(*, pad: int | None = 2, labels: int = 1, bos: bool = True, positions: int = 256) -> Path:
        folder = tmp_path / "scorer"
        save_tokenizer(folder, bos=bos)
        config = LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.2,
            max_position_embeddings=positions,
            num_labels=labels,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=pad,
        )
        torch.manual_seed(3)
        LlamaForSequenceClassification(config).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Return the folder of a BERT with one label."""
    folder = tmp_path / "encoder"
    save_encoder_tokenizer(folder)
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        max_position_embeddings=24,
        num_labels=1,
    )
    torch.manual_seed(3)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def load_scorer(folder: Path, *, smoke: bool = False) -> ModelScorer:
    """Return a scorer with weights."""
    scorer = ModelScorer(str(folder))
    scorer.load(RECIPE, smoke=smoke)
    return scorer


def make_completions(prompts: Sequence[Text], completions: Sequence[Text]) -> Completions:
    """Return completions whose token ids do not matter."""
    rows = [PromptRow(prompt, {}) for prompt in prompts]
    return Completions(rows, [[4]] * len(rows), [[5, 2]] * len(rows), completions)


def conversations() -> tuple[list[list[Message]], list[list[Message]]]:
    """Return prompts and completions as messages; one prompt has three turns."""
    turns = [[Message(role="user", content=prompt)] for prompt in PROMPTS]
    turns[1] = [*turns[0], Message(role="assistant", content="Two."), *turns[1]]
    return turns, [[Message(role="assistant", content=text.strip())] for text in COMPLETIONS]


def plain_scores(folder: Path, inputs: list[dict[str, Any]]) -> list[float]:
    """Return the scores of transformers' own forward pass, row by row."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return [model(**{k: torch.tensor([v]) for k, v in row.items()}).logits[0, 0].item() for row in inputs]


def assert_close(found: Sequence[float | None], expected: list[float]) -> None:
    """Compare scores, which must all differ."""
    assert len(set(found)) == len(found)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-6)  # float32 sums


@pytest.mark.parametrize("pad", [2, 1, None], ids=["own pad", "pad is end", "no pad"])
@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_text_scores_equal_plain_transformers(make_scorer: MakeModel, pad: int | None, max_tokens: int) -> None:
    folder = make_scorer(pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [f"{p}{a}{tokenizer.eos_token}" for p, a in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = plain_scores(folder, [{"input_ids": tokenizer(text)["input_ids"]} for text in texts])
    assert tokenizer(texts[0])["input_ids"][0] == tokenizer.bos_token_id
    found = load_scorer(folder).score(make_completions(PROMPTS, COMPLETIONS), max_tokens=max_tokens)
    assert_close(found.values, expected)


@pytest.mark.parametrize("pad", [2, 1, None], ids=["own pad", "pad is end", "no pad"])
def test_conversation_scores_equal_plain_transformers_with_own_template(
    make_scorer: MakeModel, pad: int | None
) -> None:
    folder = make_scorer(pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts, replies = conversations()
    rows = [tokenizer.apply_chat_template(p + r, return_dict=False) for p, r in zip(prompts, replies, strict=True)]
    expected = plain_scores(folder, [{"input_ids": ids} for ids in rows])
    assert_close(load_scorer(folder).score(make_completions(prompts, replies), max_tokens=100).values, expected)


@pytest.mark.parametrize("bos", [True, False])
def test_token_ids_equal_those_of_trl_reward_trainer(make_scorer: MakeModel, bos: bool) -> None:
    from trl import RewardConfig, RewardTrainer

    folder = make_scorer(bos=bos)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    datasets: list[tuple[Sequence[Text], Sequence[Text]]] = [(PROMPTS, COMPLETIONS), conversations()]
    for prompts, replies in datasets:
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(folder),
            args=RewardConfig(output_dir=str(folder / "out"), report_to=[], use_cpu=True, max_length=None),
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": prompts, "chosen": replies, "rejected": replies[::-1]}),
        )
        found = [tokenize(tokenizer, p, r)["input_ids"] for p, r in zip(prompts, replies, strict=True)]
        assert found == [list(ids) for ids in trainer.train_dataset["chosen_ids"]]


def test_text_gets_exactly_one_end_token(make_scorer: MakeModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_scorer())
    once = tokenize(tokenizer, "The dog", " was")["input_ids"]
    assert once.count(tokenizer.eos_token_id) == 1
    assert tokenize(tokenizer, "The dog", " was<|end|>")["input_ids"] == once
    assert tokenize(tokenizer, "", "")["input_ids"] == [tokenizer.bos_token_id, tokenizer.eos_token_id]


@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_encoder_reads_prompt_and_completion_as_two_segments(encoder: Path, max_tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    texts = ([p.lower() for p in PROMPTS], [a.lower() for a in COMPLETIONS[:3]] + [" and small."])
    pairs = [dict(tokenizer(p, a)) for p, a in zip(*texts, strict=True)]
    assert sum(pairs[0]["token_type_ids"]) > 0
    assert_close(
        load_scorer(encoder).score(make_completions(*texts), max_tokens=max_tokens).values, plain_scores(encoder, pairs)
    )


def test_too_long_input_loses_its_beginning_and_is_counted(
    make_scorer: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_scorer(positions=40)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scorer = load_scorer(folder)
    long = [PROMPTS[2] * 2 + prompt for prompt in PROMPTS[:2]]
    found = scorer.score(make_completions([*long, "?"], COMPLETIONS[:3]), max_tokens=1000)
    assert found.details == {"too_long": [1.0, 1.0, 0.0]}
    rows = [tokenizer(f"{p}{a}<|end|>")["input_ids"] for p, a in zip([*long, "?"], COMPLETIONS[:3], strict=True)]
    cut = [row if len(row) <= 40 else [row[0], *row[-39:]] for row in rows]
    assert_close(found.values, plain_scores(folder, [{"input_ids": ids} for ids in cut]))
    scorer.score(make_completions(long, COMPLETIONS[:2]), max_tokens=1000)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    count = "2 of 3 prompts with completions"
    assert warnings == [f"scorer: {count} are longer than 40 tokens and are truncated at the beginning"]


def test_segments_are_truncated_with_the_tokens(encoder: Path) -> None:
    scorer = load_scorer(encoder)
    prompt, completion = " ".join(["the sea is"] * 9), "blue and small."
    both = AutoTokenizer.from_pretrained(encoder)(prompt, completion)
    expected = {name: [values[0], *values[-23:]] for name, values in both.items()}
    found = scorer.score(make_completions([prompt, "the sea"], [completion, completion]), max_tokens=100)
    assert_close(found.values[:1], plain_scores(encoder, [expected]))


def test_context_length_is_the_lower_of_positions_and_tokenizer(make_scorer: MakeModel) -> None:
    folder = make_scorer()
    assert load_scorer(folder).max_length == 256
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 100}))
    assert load_scorer(folder).max_length == 100


def test_models_are_named_by_folder_and_log_details(make_scorer: MakeModel, make_actor_critic: MakeActorCritic) -> None:
    folder = make_scorer(positions=40)
    functions = build_reward_functions([RewardSource(model=str(folder), weight=2.0), RewardSource(model=str(folder))])
    assert [(function.name, function.ensemble) for function in functions] == [("scorer", None), ("scorer_2", None)]
    completions = make_completions(["?", PROMPTS[2] * 2], COMPLETIONS[:2])
    prepare_reward_functions(functions, completions.rows, RECIPE, smoke=False)
    scores = score_completions(functions, make_actor_critic().model, completions, pad_id=0, max_tokens=50)
    assert list(scores) == ["scorer", "scorer.too_long", "scorer_2", "scorer_2.too_long"]
    assert scores["scorer.too_long"].tolist() == [0.0, 1.0]
    torch.testing.assert_close(weighted_sum(functions, scores), 3 * scores["scorer"])


def test_weights_have_the_recipe_dtype_and_are_frozen(make_scorer: MakeModel) -> None:
    scorer = ModelScorer(str(make_scorer()))
    scorer.load(Base(model="x", dtype="bfloat16", quantize="nf4"), smoke=False)
    assert scorer._model is not None
    head = scorer._model.score.weight
    body = [parameter for parameter in scorer._model.parameters() if parameter is not head]
    assert {(p.dtype, p.requires_grad) for p in body} == {(torch.bfloat16, False)}
    assert (head.dtype, head.requires_grad) == (torch.float32, False)


def test_scores_of_bfloat16_model_are_not_rounded_to_its_dtype(make_scorer: MakeModel) -> None:
    """Of 40 scores with the 8 bits of bfloat16, some would be equal."""
    folder = make_scorer()
    scorer = ModelScorer(str(folder))
    scorer.load(Base(model="x", dtype="bfloat16"), smoke=False)
    completions = [" two" * (1 + i % 5) + " three" * (i // 5) for i in range(40)]
    values = scorer.score(make_completions(["The dog"] * 40, completions), max_tokens=500).values
    assert len(set(values)) == 40
    assert any(torch.tensor(value).bfloat16().item() != value for value in values)


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}", "{{ messages"])
def test_chat_template_is_rendered_in_a_sandbox(make_scorer: MakeModel, template: str) -> None:
    prompts, _ = conversations()
    folder = make_scorer()
    (folder / "chat_template.jinja").write_text(template)
    with raises_issue("model.chat-template-failed", error=ModelError, location=str(folder)):
        ModelScorer(str(folder)).check([PromptRow(prompt, {}) for prompt in prompts])


def test_check_conversations_need_a_template_that_accepts_them(
    make_scorer: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, _ = conversations()
    rows = [PromptRow(prompt, {}) for prompt in prompts]
    folder = make_scorer()
    scorer = ModelScorer(str(folder))
    scorer.check(rows)
    assert caplog.messages == []
    scorer.check([PromptRow("text", {})])
    assert caplog.messages == ["scorer: the prompts are text, so the chat template of the model is not used"]
    system = PromptRow([Message(role="system", content="Be brief."), *prompts[0]], {})
    with raises_issue("model.chat-template-failed", error=ModelError, location=str(folder)) as issues:
        scorer.check([*rows, system])
    reason = "rejects a conversation (system, user, assistant): TemplateError: no system turns."
    assert issues[0].message == f"the reward model's chat template {reason}"
    (folder / "chat_template.jinja").unlink()
    without_template = ModelScorer(str(folder))
    without_template.check([PromptRow("text", {})])
    with raises_issue("model.missing-chat-template", error=ModelError, location=str(folder)):
        without_template.check(rows)


def test_other_models_raise_before_weights_are_loaded(
    make_scorer: MakeModel, base_folder: Path, sft_folder: Path, tmp_path: Path
) -> None:
    for folder, code in (
        (make_scorer(labels=3), "model.not-a-reward-model"),
        (base_folder, "model.not-a-reward-model"),
        (sft_folder, "model.wrong-kind"),
        (tmp_path / "none", "model.not-found"),
    ):
        with raises_issue(code, error=ModelError):
            ModelScorer(str(folder))


def test_weights_without_head_or_in_a_pickle_raise(make_scorer: MakeModel) -> None:
    folder = make_scorer()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "score.weight"}
    model.save_pretrained(folder, state_dict=state)
    with raises_issue("model.incomplete", error=ModelError) as issues:
        load_scorer(folder)
    assert "score.weight" in issues[0].message
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with raises_issue("model.pickled-weights", error=ModelError):
        load_scorer(folder)


def test_code_in_the_model_folder_is_not_run(make_scorer: MakeModel, tmp_path: Path) -> None:
    folder = make_scorer()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(settings | {"auto_map": names, "model_type": "evil"}))
    with pytest.raises(ModelError):
        load_scorer(folder)
    (folder / "config.json").write_text(json.dumps(settings | {"auto_map": names}))
    load_scorer(folder)  # transformers has this architecture itself
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["llama", "bert", "deberta", "gpt2"])
def test_smoke_loads_a_tiny_model_of_the_same_architecture(make_scorer: MakeModel, encoder: Path, kind: str) -> None:
    folder = encoder if kind in ("bert", "deberta") else make_scorer()
    if kind == "deberta":
        sizes = {"hidden_size": 96, "pooler_hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 3}
        DebertaV2ForSequenceClassification(DebertaV2Config(vocab_size=40, num_labels=1, **sizes)).save_pretrained(
            folder
        )
    if kind == "gpt2":
        sizes = {"n_embd": 96, "n_head": 6, "n_layer": 3}
        GPT2ForSequenceClassification(GPT2Config(vocab_size=300, num_labels=1, **sizes)).save_pretrained(folder)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    scorer = load_scorer(folder, smoke=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert scorer._model is not None
    assert scorer._model.config.hidden_size == 64
    completions = make_completions(PROMPTS[:2], COMPLETIONS[:2])
    found = scorer.score(completions, max_tokens=100)
    assert found == load_scorer(folder, smoke=True).score(completions, max_tokens=100)
    assert found != load_scorer(folder).score(completions, max_tokens=100)


def test_complete_model_of_a_reward_run_is_accepted(base_folder: Path, tmp_path: Path) -> None:
    """The stage writes such a folder with `adapter: null`."""
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    ids = [*tokenizer("w1 w2 w3")["input_ids"], tokenizer.eos_token_id]
    found = load_scorer(tmp_path / "model").score(make_completions(["w1 w2"], [" w3"]), max_tokens=10)
    assert_close(found.values, plain_scores(tmp_path / "model", [{"input_ids": ids}]))
