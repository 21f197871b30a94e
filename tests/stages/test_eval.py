"""The eval stage on tiny models: its metrics equal those of plain transformers and PEFT, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
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
from rlhf_cli.evaluation.metrics import find_metric, function_name, metric_names
from rlhf_cli.inference import generation
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.pipeline.resolve import resolve
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run
from tests.support.issues import raises_issue
from tests.support.made_runs import make_run as make_complete_run
from tests.support.reporters import RecordingReporter
from tests.support.stages import run_stage_function

Evaluated = tuple[dict[str, float], Path]  # metrics, run folder

WORDS = [f"w{i}" for i in range(40)]
LORA = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
PROMPTS = [f"{WORDS[i]} {WORDS[(3 * i) % 40]}" for i in range(12)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a base model, three adapters on it, rows, and Python functions. Return the folder."""
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
    """Write an adapter with random weights; `reward` has a score head."""
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    if name == "reward":
        scorer = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
        model = get_peft_model(scorer, LoraConfig(task_type="SEQ_CLS", **lora))
    else:
        policy = AutoModelForCausalLM.from_pretrained(folder / "base")
        model = get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", **lora))
    model.save_pretrained(folder / name)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_recipe(world: Path, data: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    """Return a recipe on the models of `world`; settings are those of `eval`."""
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


def make_run(folder: Path, *, smoke: bool = False) -> Run:
    """Open a run of eval."""
    return Run.create(folder, "tiny", "eval", smoke=smoke, reporter=RecordingReporter())


def evaluate(folder: Path, world: Path, **settings: Any) -> Evaluated:
    """Run the stage with these settings of `eval`."""
    run = make_run(folder)
    return run_stage_function(make_recipe(world, **settings), run).metrics, run.path


def held_out(name: Any, recipe: Recipe) -> list[Any]:
    """Return the rows of `name` that are held out of training."""
    return sources.load(getattr(recipe.data, name), name, seed=0, find=Path).held_out


def tokenizer_of(world: Path) -> Any:
    """Return the base model's tokenizer, prepared as for training."""
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    chat_template.prepare(tokenizer, "auto")
    return tokenizer


def policy_of(world: Path, name: str) -> Any:
    """Return an adapter on its base, loaded with PEFT."""
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    return PeftModel.from_pretrained(model, world / name).eval()


@torch.no_grad()
def logprobs(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Return the log-probabilities of one response, unpadded: (len(response),)."""
    logits = model(torch.tensor([prompt + response])).logits[0] / temperature
    chosen = torch.tensor(response)[:, None]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, chosen)[:, 0]


@torch.no_grad()
def plain_reward(world: Path, prompts: list[list[int]], responses: list[list[int]]) -> float:
    """Return the mean score of prompts with responses, row by row, unpadded."""
    scorer = AutoModelForSequenceClassification.from_pretrained(world / "base", num_labels=1)
    model = PeftModel.from_pretrained(scorer, world / "reward").eval()
    scores = [float(model(torch.tensor([p + r])).logits) for p, r in zip(prompts, responses, strict=True)]
    return sum(scores) / len(scores)


@pytest.fixture(scope="module")
def evaluated(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Return one evaluation with all parts, for the tests that only read it."""
    gates = [{"metric": "win_rate", "min": 0.0}, {"metric": "kl", "max": -1.0}]
    python = [f"{world}/gold.py:words"]
    return evaluate(tmp_path_factory.mktemp("runs"), world, python=python, gates=gates)


def test_metrics_are_those_of_the_registry(world: Path, evaluated: Evaluated) -> None:
    spec = f"{world}/gold.py:words"
    assert list(evaluated[0]) == metric_names(make_recipe(world, python=[spec]))
    function = function_name(spec)
    assert all(find_metric(name) is not None for name in evaluated[0] if not name.startswith(function))
    assert all(math.isfinite(value) for value in evaluated[0].values())


def test_nll_equals_transformers_loss_weighted_by_tokens(world: Path, evaluated: Evaluated) -> None:
    rows = held_out("sft", make_recipe(world))
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


def test_reward_metrics_equal_plain_sequence_classifier(world: Path, evaluated: Evaluated) -> None:
    rows = held_out("preferences", make_recipe(world))
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
    assert metrics["reward.accuracy_longer"] == 1.0  # in these rows every chosen completion is the longer one


def test_kl_and_reward_are_of_the_candidate_samples(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[tuple[list[list[int]], list[list[int]]]] = []
    generate = generation.generate

    def record(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        sampled.append((prompts, generate(model, prompts, **options)))
        return sampled[-1][1]

    monkeypatch.setattr(generation, "generate", record)
    metrics, _ = evaluate(tmp_path, world, temperature=0.7)
    prompts, responses = sampled[0]
    candidate, baseline = policy_of(world, "ppo"), policy_of(world, "sft")
    ratios = [
        float((logprobs(candidate, p, r, 0.7) - logprobs(baseline, p, r, 0.7)).sum())
        for p, r in zip(prompts, responses, strict=True)
    ]
    assert metrics["kl"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-4, abs=1e-4)
    assert metrics["kl.token"] == pytest.approx(sum(ratios) / sum(map(len, responses)), rel=1e-4, abs=1e-4)
    assert metrics["policy.reward"] == pytest.approx(plain_reward(world, prompts, responses), rel=1e-4, abs=1e-4)
    assert metrics["response_length"] == sum(map(len, responses)) / len(responses)
    assert metrics["truncation_rate"] == sum(r[-1] != 2 for r in responses) / len(responses)


def test_model_compared_with_itself_has_no_gain(world: Path, tmp_path: Path) -> None:
    metrics, _ = evaluate(tmp_path, world, candidate=str(world / "sft"), python=[f"{world}/gold.py:words"])
    assert metrics["kl"] == 0.0
    assert metrics["win_rate"] == 0.5
    assert metrics["policy.reward_gain"] == metrics["words.gain"] == 0.0
    assert metrics["response_length"] == metrics["response_length.baseline"]


def test_samples_hold_both_completions_and_their_scores(evaluated: Evaluated) -> None:
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
    for row in rows:  # the function got the text and the column of this row
        assert row["words"] == len(row["candidate"].split()) + PROMPTS.index(row["prompt"])
    assert metrics["words.gain"] == pytest.approx(metrics["words"] - metrics["words.baseline"])


def test_report_holds_metrics_and_verdicts(evaluated: Evaluated) -> None:
    metrics, path = evaluated
    content = json.loads((path / "report.json").read_text())
    assert content["metrics"] == metrics
    assert [gate["passed"] for gate in content["gates"]] == [True, False]
    assert content["sizes"] == {"demonstrations": 5, "preferences": 5, "prompts": 5}
    assert "FAIL  kl" in (path / "report.md").read_text()


def test_verdicts_of_gates_are_returned_and_logged(world: Path, tmp_path: Path) -> None:
    data = {"sft": {"path": str(world / "sft.jsonl"), "eval_fraction": 0.5}}
    gates = [{"metric": "sft.nll", "max": 0.0}, {"metric": "sft.perplexity", "min": 1.0}]
    run = make_run(tmp_path)
    result = run_stage_function(make_recipe(world, data=data, reward=None, gates=gates), run)
    assert [(gate["metric"], gate["passed"]) for gate in result.gates] == [("sft.nll", False), ("sft.perplexity", True)]
    assert list(result.gates) == json.loads((run.path / "report.json").read_text())["gates"]
    messages = [line.partition(" ")[2] for line in (run.path / "log.txt").read_text().splitlines()]
    assert [text[:4] for text in messages[-2:]] == ["FAIL", "pass"]


def test_verdict_names_reward_model_and_function_that_candidate_was_trained_on(world: Path, tmp_path: Path) -> None:
    """By lineage: the candidate's run, or one that it was made from, has them among its reward sources."""
    runs, python = tmp_path / "runs", f"{world}/gold.py:words"
    kept = ("role", "ref", "kind", "path", "version", "sha256")
    recipe = make_recipe(world, python=[python])
    stage = resolve("eval", recipe, runs, smoke=False)
    by_role = {item.role: dict(zip(kept, item, strict=True)) for item in stage.inputs}
    sources = [by_role["reward"] | {"role": "ppo.reward.0"}, by_role["eval.python.0"] | {"role": "ppo.reward.1"}]
    first = make_complete_run(runs, "ppo", inputs=sources)
    second = make_complete_run(runs, "ppo", inputs=[by_role["reward"] | {"role": "start", "path": str(first)}])
    shutil.copytree(world / "ppo", second / "model")
    checkpoint = shutil.copytree(world / "ppo", second / "checkpoints" / "step-000001" / "model")
    manifest = json.loads((second / "manifest.json").read_text())
    manifest["inputs"][0]["kind"] = "run"
    (second / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
    (checkpoint.parent / "manifest.json").write_text('{"schema": 1, "step": 1, "files": {}}')
    for number, candidate in enumerate((second, checkpoint)):
        run = make_run(tmp_path / f"other{number}")
        verdict = run_stage_function(make_recipe(world, python=[python], candidate=str(candidate)), run).verdict
        assert verdict is not None
        assert "that it was trained against" in verdict["text"]
        assert "trained to maximize world/reward and words" in " ".join(verdict["warnings"]).replace(
            world.name, "world"
        )
        assert verdict == json.loads((run.path / "report.json").read_text())["verdict"]


def test_verdict_of_model_that_was_not_trained_on_the_reward_has_no_warning(world: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    verdict = run_stage_function(make_recipe(world), run).verdict
    assert verdict is not None
    assert "trained against" not in verdict["text"]
    assert not any("trained to maximize" in text for text in verdict["warnings"])


def test_same_recipe_gives_the_same_metrics(world: Path, tmp_path: Path, evaluated: Evaluated) -> None:
    again, _ = evaluate(tmp_path, world, python=[f"{world}/gold.py:words"])
    assert again == evaluated[0]


def test_swapped_sides_give_swapped_completions(world: Path, tmp_path: Path, evaluated: Evaluated) -> None:
    """Both sides have the same random draws."""
    _, path = evaluate(tmp_path, world, candidate=str(world / "sft"), baseline=str(world / "ppo"))
    before, after = (
        [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        for folder in (evaluated[1], path)
    )
    assert [row["candidate"] for row in after] == [row["baseline"] for row in before]
    assert [row["baseline"] for row in after] == [row["candidate"] for row in before]
    assert [row["candidate"] for row in after] != [row["baseline"] for row in after]


def test_without_reward_model_and_baseline_only_candidate_is_measured(world: Path, tmp_path: Path) -> None:
    metrics, path = evaluate(tmp_path, world, candidate="base", baseline=None, reward=None)
    completions = {"response_length", "truncation_rate", "repeated_4gram_rate", "distinct_2"}
    assert set(metrics) == {"sft.nll", "sft.perplexity", *completions}
    assert set(json.loads((path / "samples.jsonl").read_text().splitlines()[0])) == {"prompt", "candidate"}


def test_candidate_base_is_the_base_without_adapter(world: Path, tmp_path: Path) -> None:
    metrics, _ = evaluate(tmp_path, world, candidate="base", reward=None)
    rows = held_out("sft", make_recipe(world))
    model = AutoModelForCausalLM.from_pretrained(world / "base").eval()
    pairs = chat_template.encode_pairs(tokenizer_of(world), [(row.prompt, row.completion) for row in rows])
    total = -sum(float(logprobs(model, *pair).sum()) for pair in pairs)
    assert metrics["sft.nll"] == pytest.approx(total / sum(len(c) for _, c in pairs), rel=1e-4)


def test_samples_limits_the_rows_of_every_dataset(world: Path, tmp_path: Path) -> None:
    metrics, path = evaluate(tmp_path, world, samples=4)
    assert metrics["win_rate.n"] == 4
    assert set(json.loads((path / "report.json").read_text())["sizes"].values()) == {4}


def test_functions_get_messages_for_conversations(world: Path, tmp_path: Path) -> None:
    data = {"prompts": {"path": str(world / "chat.jsonl"), "eval_fraction": 0.5}}
    metrics, _ = evaluate(tmp_path, world, data=data, python=[f"{world}/gold.py:turns"])
    assert metrics["turns"] == 1.0


def test_rows_without_prompt_are_scored_from_their_second_token(world: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{p} w1 w2"} for p in PROMPTS]
    write(tmp_path / "text.jsonl", rows)
    data = {"sft": {"path": str(tmp_path / "text.jsonl"), "eval_fraction": 0.5}}
    recipe = make_recipe(world, data=data, reward=None)
    metrics = run_stage_function(recipe, make_run(tmp_path)).metrics
    model, total, count = policy_of(world, "ppo"), 0.0, 0
    for pair in chat_template.encode_pairs(tokenizer_of(world), [("", r.completion) for r in held_out("sft", recipe)]):
        ids = pair.prompt_ids + pair.completion_ids
        start = max(len(pair.prompt_ids), 1)
        total, count = total - float(logprobs(model, ids[:start], ids[start:]).sum()), count + len(ids) - start
    assert metrics["sft.nll"] == pytest.approx(total / count, rel=1e-4)


@pytest.fixture
def refuse_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if weights are loaded."""
    monkeypatch.setattr(MultiAdapterModel, "load", lambda *_args, **_options: pytest.fail("weights were loaded"))


@pytest.mark.usefixtures("refuse_models")
def test_gate_on_unknown_metric_raises_before_models_are_loaded(world: Path, tmp_path: Path) -> None:
    with raises_issue("eval.unknown-metric", error=RecipeError, location="eval.gates.0.metric") as issues:
        evaluate(tmp_path, world, gates=[{"metric": "winrate", "min": 0.5}])
    assert "win_rate" in issues[0].hint


@pytest.mark.usefixtures("refuse_models")
def test_gate_on_metric_without_data_raises(world: Path, tmp_path: Path) -> None:
    data = {"sft": {"path": str(world / "sft.jsonl")}}
    with raises_issue("eval.unknown-metric", error=RecipeError):
        evaluate(tmp_path, world, data=data, gates=[{"metric": "win_rate", "min": 0.5}])


@pytest.mark.usefixtures("refuse_models")
def test_no_dataset_raises(world: Path, tmp_path: Path) -> None:
    with raises_issue("eval.nothing-to-evaluate", error=RecipeError, location="data"):
        evaluate(tmp_path, world, data={})


@pytest.mark.usefixtures("refuse_models")
def test_two_functions_of_one_name_raise(world: Path, tmp_path: Path) -> None:
    shutil.copy(world / "gold.py", tmp_path / "other.py")
    with raises_issue("eval.duplicate-metric", error=RecipeError, location="eval.python"):
        evaluate(tmp_path, world, python=[f"{world}/gold.py:words", f"{tmp_path}/other.py:words"])


@pytest.mark.usefixtures("refuse_models")
def test_function_that_needs_a_missing_column_raises_before_models_are_loaded(world: Path, tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text("def needy(completions, solution): return [0.0 for _ in completions]\n")
    with raises_issue("recipe.function-signature", error=RecipeError, location="needy.py:needy"):
        evaluate(tmp_path, world, python=[f"{tmp_path}/needy.py:needy"])


@pytest.mark.usefixtures("refuse_models")
def test_no_held_out_rows_raise(world: Path, tmp_path: Path) -> None:
    data = {"prompts": {"path": str(world / "prompts.jsonl"), "eval_fraction": 0.0}}
    with raises_issue("data.nothing-held-out", error=DataError, location="data.prompts"):
        evaluate(tmp_path, world, data=data)


def test_smoke_run_uses_training_rows_if_none_are_held_out(world: Path, tmp_path: Path) -> None:
    data = {"prompts": {"path": str(world / "prompts.jsonl"), "eval_fraction": 0.0}}
    recipe = make_recipe(world, data=data, candidate="base", baseline=None, reward=None)
    result = run_stage_function(recipe, make_run(tmp_path, smoke=True))
    assert result.metrics["response_length"] > 0
    assert result.verdict is not None
    assert result.verdict["warnings"] == []


def test_prompts_that_are_all_too_long_raise(world: Path, tmp_path: Path) -> None:
    recipe = make_recipe(world).model_copy(
        update={"ppo": make_recipe(world).ppo.model_copy(update={"max_prompt_length": 1})}
    )
    with raises_issue("data.no-usable-rows", error=DataError, location="ppo.max_prompt_length"):
        run_stage_function(recipe, make_run(tmp_path))


def test_few_prompts_are_warned_of(world: Path, tmp_path: Path) -> None:
    _, path = evaluate(tmp_path, world, samples=4)
    warning = "only 4 held-out prompts; confidence intervals are unreliable below 30"
    assert warning in json.loads((path / "report.json").read_text())["verdict"]["warnings"]


def test_policy_as_reward_model_raises(world: Path, tmp_path: Path) -> None:
    with raises_issue("model.not-a-reward-model", error=ModelError, location="eval.reward"):
        evaluate(tmp_path, world, reward=str(world / "sft"))


def test_reward_model_with_another_template_raises_only_for_conversations(world: Path, tmp_path: Path) -> None:
    reward_model = shutil.copytree(world / "reward", tmp_path / "reward")
    tokenizer = tokenizer_of(world)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(reward_model)
    assert "win_rate" in evaluate(tmp_path / "text", world, reward=str(reward_model))[0]
    for kind in ("prompts", "preferences"):
        pair = {
            "chosen": [{"role": "assistant", "content": "w1"}],
            "rejected": [{"role": "assistant", "content": "w2"}],
        }
        rows = [{"prompt": [{"role": "user", "content": p}], **pair} for p in PROMPTS]
        write(tmp_path / "rows.jsonl", rows)
        data = {kind: {"path": str(tmp_path / "rows.jsonl"), "eval_fraction": 0.5}}
        with raises_issue("model.reward-tokenizer-mismatch", error=ModelError, location="eval.reward"):
            evaluate(tmp_path / kind, world, data=data, reward=str(reward_model))


def test_non_finite_function_score_raises_with_its_name(world: Path, tmp_path: Path) -> None:
    with raises_issue("eval.non-finite", error=ModelError, location="eval") as issues:
        evaluate(tmp_path, world, python=[f"{world}/gold.py:broken"])
    assert issues[0].message == "not a finite number: broken."


def test_function_that_raises_is_a_recipe_error_because_nothing_trains(world: Path, tmp_path: Path) -> None:
    location = f"{world}/gold.py:10"
    with raises_issue("training.reward-raised", error=RecipeError, location=location):
        evaluate(tmp_path, world, python=[f"{world}/gold.py:raising"])
    assert RecipeError.exit_code == 2
