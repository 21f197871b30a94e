"""The eval stage on tiny models: its figures against plain transformers and peft, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf_cli.data import chat_template, sources
from rlhf_cli.errors import DataError, ModelError, RecipeError
from rlhf_cli.evaluation.metrics import metric_names
from rlhf_cli.inference import generation
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run
from rlhf_cli.stages import eval as stage

WORDS = [f"w{i}" for i in range(40)]
LORA = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
PROMPTS = [f"{WORDS[i]} {WORDS[(3 * i) % 40]}" for i in range(12)]


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, total: int, unit: str) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def info(self, text: str) -> None:
        self.said.append(text)

    def warning(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, three adapters on it, rows, and a judge in Python."""
    folder = tmp_path_factory.mktemp("world")
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokens = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **names).save_pretrained(folder / "base")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), initializer_range=0.5, **shape, **special)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    for name in ("sft", "ppo", "reward"):
        _save_adapter(folder, name)
    write(folder / "sft.jsonl", [{"prompt": p, "completion": f"w1 {p} w2"} for p in PROMPTS])
    pairs = [{"prompt": p, "chosen": f"w5 {p} w6 w7", "rejected": f"w8 w{i}"} for i, p in enumerate(PROMPTS)]
    write(folder / "preferences.jsonl", pairs)
    write(folder / "prompts.jsonl", [{"prompt": p, "number": i} for i, p in enumerate(PROMPTS)])
    write(folder / "chat.jsonl", [{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS])
    (folder / "gold.py").write_text(
        "def words(prompts, completions, number, **columns):\n"
        "    assert len(columns['completion_ids']) == len(completions)\n"
        "    return [len(c.split()) + n for c, n in zip(completions, number)]\n"
        "def turns(prompts, completions, **columns):\n"
        "    assert all(c[0]['role'] == 'assistant' for c in completions)\n"
        "    return [len(c) for c in completions]\n"
        "def broken(prompts, completions, **columns):\n"
        "    return [float('inf') for c in completions]\n"
        "def raising(prompts, completions, **columns):\n"
        "    raise ValueError('no tone')\n"
    )
    return folder


def _save_adapter(folder: Path, name: str) -> None:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    if name == "reward":
        scorer = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
        model = get_peft_model(scorer, LoraConfig(task_type="SEQ_CLS", **lora))
    else:
        policy = AutoModelForCausalLM.from_pretrained(folder / "base")
        model = get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", **lora))
    model.save_pretrained(folder / name)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_recipe(world: Path, data: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    names = ("sft", "preferences", "prompts")
    every = {name: {"path": str(world / f"{name}.jsonl"), "eval_fraction": 0.5} for name in names}
    models = {"candidate": str(world / "ppo"), "baseline": str(world / "sft"), "reward": str(world / "reward")}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "base": {"model": str(world / "base"), "dtype": "float32"},
            "adapter": LORA,
            "data": every if data is None else data,
            "eval": {**models, "max_new_tokens": 8, "batch_size": 4, **settings},
        }
    )


def make_run(folder: Path, world: Path, smoke: bool = False) -> Run:
    return Run.create(folder, "tiny", "eval", smoke=smoke, base_path=str(world / "base"), reporter=Silent())


def evaluate(folder: Path, world: Path, **settings: Any) -> tuple[dict[str, float], Path]:
    run = make_run(folder, world)
    return stage.run(make_recipe(world, **settings), run).metrics, run.path


def held_out(world: Path, name: str, recipe: Recipe) -> list[Any]:
    """The rows of `name` that the data room keeps out of training."""
    return sources.load(getattr(recipe.data, name), name, seed=0, find=Path).held_out


def tokenizer_of(world: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    chat_template.prepare(tokenizer, "auto")
    return tokenizer


def policy_of(world: Path, name: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    return PeftModel.from_pretrained(model, world / name).eval()


@torch.no_grad()
def logprobs(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of one response alone, unpadded: (len(response),)."""
    logits = model(torch.tensor([prompt + response])).logits[0] / temperature
    chosen = torch.tensor(response)[:, None]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, chosen)[:, 0]


@torch.no_grad()
def plain_reward(world: Path, prompts: list[list[int]], responses: list[list[int]]) -> float:
    """The mean score of prompt and response together, row by row, unpadded."""
    scorer = AutoModelForSequenceClassification.from_pretrained(world / "base", num_labels=1)
    model = PeftModel.from_pretrained(scorer, world / "reward").eval()
    scores = [float(model(torch.tensor([p + r])).logits) for p, r in zip(prompts, responses, strict=True)]
    return sum(scores) / len(scores)


@pytest.fixture(scope="module")
def evaluated(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], Path]:
    """One evaluation with everything in it, for the tests that look at its figures."""
    gates = [{"metric": "win_rate", "min": 0.0}, {"metric": "kl", "max": -1.0}]
    python = [f"{world}/gold.py:words"]
    return evaluate(tmp_path_factory.mktemp("runs"), world, python=python, gates=gates)


def test_metrics_are_those_that_the_recipe_promises(world: Path, evaluated: tuple[dict[str, float], Path]) -> None:
    recipe = make_recipe(world, python=[f"{world}/gold.py:words"])
    assert set(evaluated[0]) == set(metric_names(recipe))
    assert all(math.isfinite(value) for value in evaluated[0].values())


def test_held_out_loss_is_transformers_own_weighted_by_token(
    world: Path, evaluated: tuple[dict[str, float], Path]
) -> None:
    rows = held_out(world, "sft", make_recipe(world))
    pairs = chat_template.encode_pairs(tokenizer_of(world), [(row.prompt, row.completion) for row in rows])
    for side, name in (("ppo", "sft.nll"), ("sft", "sft.nll.baseline")):
        model, total, count = policy_of(world, side), 0.0, 0
        for prompt, completion in pairs:
            labels = torch.tensor([[-100] * len(prompt) + completion])
            with torch.no_grad():
                loss = model(torch.tensor([prompt + completion]), labels=labels).loss
            total, count = total + float(loss) * len(completion), count + len(completion)
        # padding in batches moves float32 sums by some 1e-6 of their size
        assert evaluated[0][name] == pytest.approx(total / count, rel=1e-4)
    assert evaluated[0]["sft.perplexity"] == pytest.approx(math.exp(evaluated[0]["sft.nll"]))


def test_reward_accuracy_is_that_of_the_plain_sequence_classifier(
    world: Path, evaluated: tuple[dict[str, float], Path]
) -> None:
    rows = held_out(world, "preferences", make_recipe(world))
    scorer = AutoModelForSequenceClassification.from_pretrained(world / "base", num_labels=1)
    model = PeftModel.from_pretrained(scorer, world / "reward").eval()
    margins = []
    for row in rows:
        both = chat_template.encode_pairs(tokenizer_of(world), [(row.prompt, row.chosen), (row.prompt, row.rejected)])
        with torch.no_grad():
            chosen, rejected = (float(model(torch.tensor([e.prompt_ids + e.completion_ids])).logits) for e in both)
        margins.append(chosen - rejected)
    metrics = evaluated[0]
    assert metrics["reward.accuracy"] == sum(margin > 0 for margin in margins) / len(margins)
    assert metrics["reward.margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-4, abs=1e-5)
    assert metrics["reward.accuracy.n"] == len(rows)
    assert metrics["reward.ties"] == 0
    assert metrics["reward.accuracy_longer"] == 1.0  # every chosen answer of these rows is the longer one


def test_kl_and_reward_are_those_of_the_policys_own_samples(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[list[list[int]], list[list[int]]]] = []
    generate = generation.generate

    def record(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        made.append((prompts, generate(model, prompts, **options)))
        return made[-1][1]

    monkeypatch.setattr(generation, "generate", record)
    metrics, _ = evaluate(tmp_path, world, temperature=0.7)
    prompts, responses = made[0]
    of, against = policy_of(world, "ppo"), policy_of(world, "sft")
    ratios = [
        float((logprobs(of, p, r, 0.7) - logprobs(against, p, r, 0.7)).sum())
        for p, r in zip(prompts, responses, strict=True)
    ]
    assert metrics["kl"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-4, abs=1e-4)
    assert metrics["kl.token"] == pytest.approx(sum(ratios) / sum(map(len, responses)), rel=1e-4, abs=1e-4)
    assert metrics["policy.reward"] == pytest.approx(plain_reward(world, prompts, responses), rel=1e-4, abs=1e-4)
    assert metrics["response_length"] == sum(map(len, responses)) / len(responses)
    assert metrics["truncation_rate"] == sum(r[-1] != 2 for r in responses) / len(responses)


def test_a_model_against_itself_gains_nothing(world: Path, tmp_path: Path) -> None:
    metrics, _ = evaluate(tmp_path, world, candidate=str(world / "sft"), python=[f"{world}/gold.py:words"])
    assert metrics["kl"] == 0.0
    assert metrics["win_rate"] == 0.5
    assert metrics["policy.reward_gain"] == metrics["words.gain"] == 0.0
    assert metrics["response_length"] == metrics["response_length.baseline"]


def test_samples_hold_both_answers_and_what_the_figures_are_made_of(evaluated: tuple[dict[str, float], Path]) -> None:
    metrics, path = evaluated
    rows = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert set(rows[0]) == {
        "prompt",
        "candidate",
        "baseline",
        "candidate_score",
        "baseline_score",
        "words",
        "words.baseline",
    }
    gains = [row["candidate_score"] - row["baseline_score"] for row in rows]
    assert metrics["policy.reward_gain"] == pytest.approx(sum(gains) / len(rows))
    assert metrics["win_rate"] == pytest.approx(sum((g > 0) + 0.5 * (g == 0) for g in gains) / len(rows))
    for row in rows:  # the judge got this row's text and its own column
        assert row["words"] == len(row["candidate"].split()) + PROMPTS.index(row["prompt"])
    assert metrics["words.gain"] == pytest.approx(metrics["words"] - metrics["words.baseline"])


def test_the_report_judges_the_gates_and_the_stage_goes_on(evaluated: tuple[dict[str, float], Path]) -> None:
    metrics, path = evaluated
    content = json.loads((path / "report.json").read_text())
    assert content["metrics"] == metrics
    assert [gate["passed"] for gate in content["gates"]] == [True, False]
    assert content["sizes"] == {"demonstrations": 5, "preferences": 5, "prompts": 5}
    assert "FAIL  kl" in (path / "report.md").read_text()


def test_the_same_recipe_gives_the_same_figures(
    world: Path, tmp_path: Path, evaluated: tuple[dict[str, float], Path]
) -> None:
    again, _ = evaluate(tmp_path, world, python=[f"{world}/gold.py:words"])
    assert again == evaluated[0]


def test_each_side_answers_for_itself(world: Path, tmp_path: Path, evaluated: tuple[dict[str, float], Path]) -> None:
    """With the sides swapped and the same seed, the answers are swapped."""
    _, path = evaluate(tmp_path, world, candidate=str(world / "sft"), baseline=str(world / "ppo"))
    before, after = (
        [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        for folder in (evaluated[1], path)
    )
    assert [row["candidate"] for row in after] == [row["baseline"] for row in before]
    assert [row["baseline"] for row in after] == [row["candidate"] for row in before]
    assert [row["candidate"] for row in after] != [row["baseline"] for row in after]


def test_without_reward_and_opponent_there_are_figures_of_one_side(world: Path, tmp_path: Path) -> None:
    metrics, path = evaluate(tmp_path, world, candidate="base", baseline=None, reward=None)
    answers = {"response_length", "truncation_rate", "repeated_4gram_rate", "distinct_2"}
    assert set(metrics) == {"sft.nll", "sft.perplexity", *answers}
    assert set(json.loads((path / "samples.jsonl").read_text().splitlines()[0])) == {"prompt", "candidate"}


def test_base_means_the_base_without_adapter(world: Path, tmp_path: Path) -> None:
    metrics, _ = evaluate(tmp_path, world, candidate="base", reward=None)
    rows = held_out(world, "sft", make_recipe(world))
    model = AutoModelForCausalLM.from_pretrained(world / "base").eval()
    pairs = chat_template.encode_pairs(tokenizer_of(world), [(row.prompt, row.completion) for row in rows])
    total = -sum(float(logprobs(model, *pair).sum()) for pair in pairs)
    assert metrics["sft.nll"] == pytest.approx(total / sum(len(c) for _, c in pairs), rel=1e-4)


def test_samples_bounds_the_rows_of_every_kind(world: Path, tmp_path: Path) -> None:
    metrics, path = evaluate(tmp_path, world, samples=4)
    assert metrics["win_rate.n"] == 4
    assert set(json.loads((path / "report.json").read_text())["sizes"].values()) == {4}


def test_functions_get_conversations_for_conversations(world: Path, tmp_path: Path) -> None:
    data = {"prompts": {"path": str(world / "chat.jsonl"), "eval_fraction": 0.5}}
    metrics, _ = evaluate(tmp_path, world, data=data, python=[f"{world}/gold.py:turns"])
    assert metrics["turns"] == 1.0


def test_rows_of_text_alone_are_scored_from_their_second_token(world: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{p} w1 w2"} for p in PROMPTS]
    write(tmp_path / "text.jsonl", rows)
    data = {"sft": {"path": str(tmp_path / "text.jsonl"), "eval_fraction": 0.5}}
    recipe = make_recipe(world, data=data, reward=None)
    metrics = stage.run(recipe, make_run(tmp_path, world)).metrics
    model, total, count = policy_of(world, "ppo"), 0.0, 0
    for pair in chat_template.encode_pairs(
        tokenizer_of(world), [("", r.completion) for r in held_out(world, "sft", recipe)]
    ):
        ids = pair.prompt_ids + pair.completion_ids
        start = max(len(pair.prompt_ids), 1)
        total, count = total - float(logprobs(model, ids[:start], ids[start:]).sum()), count + len(ids) - start
    assert metrics["sft.nll"] == pytest.approx(total / count, rel=1e-4)


def test_a_gate_on_an_unknown_metric_is_told_before_anything_is_loaded(world: Path, tmp_path: Path) -> None:
    recipe = make_recipe(world, gates=[{"metric": "winrate", "min": 0.5}])
    run = Run.create(tmp_path, "tiny", "eval", smoke=False, base_path="no/such/model", reporter=Silent())
    with pytest.raises(RecipeError, match="win_rate"):
        stage.run(recipe, run)


def test_a_gate_on_what_the_data_do_not_give_is_refused(world: Path, tmp_path: Path) -> None:
    data = {"sft": {"path": str(world / "sft.jsonl")}}
    with pytest.raises(RecipeError, match="win_rate is not a metric that this recipe's evaluation gives"):
        evaluate(tmp_path, world, data=data, gates=[{"metric": "win_rate", "min": 0.5}])


def test_no_data_is_a_fault_of_the_recipe(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to evaluate on"):
        evaluate(tmp_path, world, data={})


def test_two_judges_of_one_name_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="two metrics would be called words"):
        evaluate(tmp_path, world, python=[f"{world}/gold.py:words", f"{world}/other.py:words"])


def test_no_held_out_rows_is_told_with_the_mend(world: Path, tmp_path: Path) -> None:
    data = {"prompts": {"path": str(world / "prompts.jsonl"), "eval_fraction": 0.0}}
    with pytest.raises(DataError, match="eval_fraction"):
        evaluate(tmp_path, world, data=data)


def test_a_smoke_run_takes_training_rows_where_none_are_held_out(world: Path, tmp_path: Path) -> None:
    data = {"prompts": {"path": str(world / "prompts.jsonl"), "eval_fraction": 0.0}}
    recipe = make_recipe(world, data=data, candidate="base", baseline=None, reward=None)
    assert stage.run(recipe, make_run(tmp_path, world, smoke=True)).metrics["response_length"] > 0


def test_prompts_that_are_all_too_long_are_told(world: Path, tmp_path: Path) -> None:
    recipe = make_recipe(world).model_copy(
        update={"ppo": make_recipe(world).ppo.model_copy(update={"max_prompt_length": 1})}
    )
    with pytest.raises(DataError, match="max_prompt_length"):
        stage.run(recipe, make_run(tmp_path, world))


def test_a_policy_as_judge_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no reward model"):
        evaluate(tmp_path, world, reward=str(world / "sft"))


def test_a_judge_that_was_trained_with_another_template_is_refused(world: Path, tmp_path: Path) -> None:
    judge = shutil.copytree(world / "reward", tmp_path / "reward")
    tokenizer = tokenizer_of(world)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(judge)
    assert "win_rate" in evaluate(tmp_path / "text", world, reward=str(judge))[0]
    for kind in ("prompts", "preferences"):
        pair = {
            "chosen": [{"role": "assistant", "content": "w1"}],
            "rejected": [{"role": "assistant", "content": "w2"}],
        }
        rows = [{"prompt": [{"role": "user", "content": p}], **pair} for p in PROMPTS]
        write(tmp_path / "rows.jsonl", rows)
        data = {kind: {"path": str(tmp_path / "rows.jsonl"), "eval_fraction": 0.5}}
        with pytest.raises(ModelError, match="trained with another chat template"):
            evaluate(tmp_path / kind, world, data=data, reward=str(judge))


def test_a_figure_that_is_not_finite_is_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises((ModelError, RecipeError), match="broken"):
        evaluate(tmp_path, world, python=[f"{world}/gold.py:broken"])


def test_a_judge_that_raises_is_a_fault_of_the_recipe_for_nothing_trains(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gold\.py:10  raising raised ValueError: no tone") as raised:
        evaluate(tmp_path, world, python=[f"{world}/gold.py:raising"])
    assert raised.value.exit_code == 2
