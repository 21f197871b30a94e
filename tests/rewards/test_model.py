"""Somebody's reward model, with another tokenizer than the policy's, held against plain transformers and TRL."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from rlhf_cli.rewards import build
from rlhf_cli.rewards.model import ModelScorer, encode

TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- raise_exception('no system turns') -}}{%- endif -%}"
    "[{{- message['role'] -}}]{{- message['content'] -}}{{- eos_token -}}{{- '\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}[assistant]{%- endif -%}"
)
WORDS = "The sea is blue and the dog was small. Please, thank you; what is two and three? Five!"
PROMPTS = ["What is two?", "The dog", "Please say what the sea is like today, and why that is so:", "?"]
ANSWERS = [" Two and two is four.", "", " Blue.", " " + "and three " * 9]
RECIPE = Base(model="unused")


def save_tokenizer(folder: Path, *, bos: bool) -> None:
    """A byte-level BPE whose tokens are nothing like the policy's words."""
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
def make_scorer(tmp_path: Path) -> Callable[..., Path]:
    """A Llama of one label in a folder; `pad` is the id in its config."""

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


def judge(folder: Path, *, told: list[str] | None = None, smoke: bool = False) -> ModelScorer:
    made = ModelScorer(str(folder), "main", [].append if told is None else told.append)
    made.load(RECIPE, smoke=smoke)
    return made


def answered(prompts: list[Any], completions: list[Any]) -> build.Completions:
    rows = [PromptRow(prompt, {}) for prompt in prompts]
    return build.Completions(rows, [[4]] * len(rows), [[5, 2]] * len(rows), completions)


def conversations() -> tuple[list[Text], list[Text]]:
    turns = [[Message(role="user", content=prompt)] for prompt in PROMPTS]
    turns[1] = [*turns[0], Message(role="assistant", content="Two."), *turns[1]]
    return turns, [[Message(role="assistant", content=answer.strip())] for answer in ANSWERS]


def plain(folder: Path, inputs: list[dict[str, Any]]) -> list[float]:
    """Each row alone through transformers' own forward pass."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return [model(**{k: torch.tensor([v]) for k, v in row.items()}).logits[0, 0].item() for row in inputs]


def close(found: list[float], expected: list[float]) -> None:
    assert len(set(found)) == len(found)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-6)  # float32 sums


@pytest.mark.parametrize("pad", [2, 1, None], ids=["own pad", "pad is end", "no pad"])
@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_text_is_scored_as_plain_transformers_scores_it(
    make_scorer: Callable[..., Path], pad: int | None, max_tokens: int
) -> None:
    folder = make_scorer(pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = [f"{p}{a}{tokenizer.eos_token}" for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    expected = plain(folder, [{"input_ids": tokenizer(text)["input_ids"]} for text in whole])
    assert tokenizer(whole[0])["input_ids"][0] == tokenizer.bos_token_id
    found = judge(folder).score(answered(PROMPTS, ANSWERS), max_tokens=max_tokens)
    close(found, expected)


@pytest.mark.parametrize("pad", [2, 1, None], ids=["own pad", "pad is end", "no pad"])
def test_a_conversation_goes_through_the_models_own_template(make_scorer: Callable[..., Path], pad: int | None) -> None:
    folder = make_scorer(pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts, answers = conversations()
    whole = [tokenizer.apply_chat_template(p + a, return_dict=False) for p, a in zip(prompts, answers, strict=True)]
    expected = plain(folder, [{"input_ids": ids} for ids in whole])
    close(judge(folder).score(answered(prompts, answers), max_tokens=100), expected)


@pytest.mark.parametrize("bos", [True, False])
def test_the_tokens_are_those_that_trl_trains_a_reward_model_on(make_scorer: Callable[..., Path], bos: bool) -> None:
    from trl import RewardConfig, RewardTrainer

    folder = make_scorer(bos=bos)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompts, answers in ((PROMPTS, ANSWERS), conversations()):
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(folder),
            args=RewardConfig(output_dir=str(folder / "out"), report_to=[], use_cpu=True, max_length=None),
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": prompts, "chosen": answers, "rejected": answers[::-1]}),
        )
        ours = [encode(tokenizer, p, a)["input_ids"] for p, a in zip(prompts, answers, strict=True)]
        assert ours == [list(ids) for ids in trainer.train_dataset["chosen_ids"]]


def test_one_end_token_also_where_the_tokenizer_or_the_answer_has_one(make_scorer: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_scorer())
    once = encode(tokenizer, "The dog", " was")["input_ids"]
    assert once.count(tokenizer.eos_token_id) == 1
    assert encode(tokenizer, "The dog", " was<|end|>")["input_ids"] == once
    assert encode(tokenizer, "", "")["input_ids"] == [tokenizer.bos_token_id, tokenizer.eos_token_id]


@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_an_encoder_reads_prompt_and_answer_as_two_segments(encoder: Path, max_tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    texts = ([p.lower() for p in PROMPTS], [a.lower() for a in ANSWERS[:3]] + [" and small."])
    pairs = [dict(tokenizer(p, a)) for p, a in zip(*texts, strict=True)]
    assert sum(pairs[0]["token_type_ids"]) > 0
    close(judge(encoder).score(answered(*texts), max_tokens=max_tokens), plain(encoder, pairs))


def test_what_is_too_long_loses_its_beginning_and_is_counted(make_scorer: Callable[..., Path]) -> None:
    folder = make_scorer(positions=40)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    told: list[str] = []
    made = judge(folder, told=told)
    long = [PROMPTS[2] * 2 + prompt for prompt in PROMPTS[:2]]
    found = made.score(answered([*long, "?"], ANSWERS[:3]), max_tokens=1000)
    assert made.too_long == [True, True, False]
    rows = [tokenizer(f"{p}{a}<|end|>")["input_ids"] for p, a in zip([*long, "?"], ANSWERS[:3], strict=True)]
    cut = [row if len(row) <= 40 else [row[0], *row[-39:]] for row in rows]
    close(found, plain(folder, [{"input_ids": ids} for ids in cut]))
    made.score(answered(long, ANSWERS[:2]), max_tokens=1000)
    assert told == ["scorer takes 40 tokens: 2 of 3 prompts with their answers are longer, and lose their beginning"]


def test_segments_are_cut_along_with_the_tokens(encoder: Path) -> None:
    made = judge(encoder)
    prompt, answer = " ".join(["the sea is"] * 9), "blue and small."
    both = AutoTokenizer.from_pretrained(encoder)(prompt, answer)
    expected = {name: [values[0], *values[-23:]] for name, values in both.items()}
    found = made.score(answered([prompt, "the sea"], [answer, answer]), max_tokens=100)
    close(found[:1], plain(encoder, [expected]))


def test_the_tokenizers_own_limit_counts_too(make_scorer: Callable[..., Path]) -> None:
    folder = make_scorer()
    assert judge(folder).limit == 256
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 100}))
    assert judge(folder).limit == 100


def test_it_is_a_term_among_others_and_logged_by_its_folder(make_scorer: Callable[..., Path], make_cast: Any) -> None:
    folder = make_scorer(positions=40)
    terms = build.terms([RewardSource(model=str(folder), weight=2.0), RewardSource(model=str(folder))])
    assert [(term.name, term.role) for term in terms] == [("scorer", None), ("scorer_2", None)]
    given = answered(["?", PROMPTS[2] * 2], ANSWERS[:2])
    build.prepare(terms, given.rows, RECIPE, smoke=False)
    scores = build.score(terms, make_cast().bank, given, pad_id=0, max_tokens=50)
    assert list(scores) == ["scorer", "scorer.too_long", "scorer_2", "scorer_2.too_long"]
    assert scores["scorer.too_long"].tolist() == [0.0, 1.0]
    torch.testing.assert_close(build.weighted(terms, scores), 3 * scores["scorer"])


def test_its_weights_are_in_the_recipes_dtype_and_frozen(make_scorer: Callable[..., Path]) -> None:
    made = ModelScorer(str(make_scorer()), "main", print)
    made.load(Base(model="x", dtype="bfloat16", quantize="nf4"), smoke=False)
    assert made._model is not None
    assert {(p.dtype, p.requires_grad) for p in made._model.parameters()} == {(torch.bfloat16, False)}


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}", "{{ messages"])
def test_a_strangers_template_is_rendered_in_the_sandbox(make_scorer: Callable[..., Path], template: str) -> None:
    prompts, _ = conversations()
    folder = make_scorer()
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="chat template does not take this conversation"):
        ModelScorer(str(folder), "main", print).check([PromptRow(prompt, {}) for prompt in prompts])


def test_conversations_need_a_template_that_takes_them_before_any_weights(make_scorer: Callable[..., Path]) -> None:
    prompts, _ = conversations()
    rows = [PromptRow(prompt, {}) for prompt in prompts]
    told: list[str] = []
    folder = make_scorer()
    made = ModelScorer(str(folder), "main", told.append)
    made.check(rows)
    assert told == []
    made.check([PromptRow("text", {})])
    assert told == ["scorer has a chat template, and the prompts are text, which does not go through it"]
    system = PromptRow([Message(role="system", content="Be brief."), *prompts[0]], {})
    with pytest.raises(ModelError, match=r"does not take this conversation \(system, user, assistant\): no system"):
        made.check([*rows, system])
    (folder / "chat_template.jinja").unlink()
    bare = ModelScorer(str(folder), "main", told.append)
    bare.check([PromptRow("text", {})])
    with pytest.raises(ModelError, match="has no chat template, and the prompts are conversations"):
        bare.check(rows)


def test_what_is_no_reward_model_is_told_before_its_weights(
    make_scorer: Callable[..., Path], base_folder: Path, sft_folder: Path, tmp_path: Path
) -> None:
    for folder, told in (
        (make_scorer(labels=3), "LlamaForSequenceClassification with 3 labels; a reward model gives one score"),
        (base_folder, "LlamaForCausalLM with 2 labels"),
        (sft_folder, "this is an adapter, not a whole reward model"),
        (tmp_path / "none", "no model folder"),
    ):
        with pytest.raises(ModelError, match=told) as raised:
            ModelScorer(str(folder), "main", print)
        assert raised.value.exit_code == 4


def test_weights_without_a_head_or_in_a_pickle_are_refused(make_scorer: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_scorer()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "score.weight"}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ModelError, match=r"lack 1 tensors of a LlamaForSequenceClassification, such as score\.weight"):
        judge(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        judge(folder)


def test_code_that_comes_with_a_model_is_not_run(make_scorer: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_scorer()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(settings | {"auto_map": names, "model_type": "evil"}))
    with pytest.raises(ModelError):
        judge(folder)
    (folder / "config.json").write_text(json.dumps(settings | {"auto_map": names}))
    judge(folder)  # the architecture is transformers' own, too
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["llama", "bert", "deberta", "gpt2"])
def test_smoke_takes_a_tiny_stand_in_of_the_same_architecture(
    make_scorer: Callable[..., Path], encoder: Path, kind: str
) -> None:
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
    made = judge(folder, smoke=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert made._model is not None
    assert made._model.config.hidden_size == 64
    found = made.score(answered(PROMPTS[:2], ANSWERS[:2]), max_tokens=100)
    assert found == judge(folder, smoke=True).score(answered(PROMPTS[:2], ANSWERS[:2]), max_tokens=100)
    assert found != judge(folder).score(answered(PROMPTS[:2], ANSWERS[:2]), max_tokens=100)


def test_a_whole_model_of_a_reward_run_works_too(base_folder: Path, tmp_path: Path) -> None:
    """`adapter: null` on another base makes such a folder."""
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    ids = [*tokenizer("w1 w2 w3")["input_ids"], tokenizer.eos_token_id]
    found = judge(tmp_path / "model").score(answered(["w1 w2"], [" w3"]), max_tokens=10)
    close(found, plain(tmp_path / "model", [{"input_ids": ids}]))
