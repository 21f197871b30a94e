"""Metrics on held-out rows after training, compared with plain transformers and peft: one row at a time, no padding."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import Trainer

from rlhf_cli.data.rows import PreferenceRow
from rlhf_cli.data.tokenization import TokenColumns
from rlhf_cli.evaluation.measurements import PreferenceMargins
from rlhf_cli.evaluation.metrics import compute
from rlhf_cli.evaluation.preference_metrics import PREFERENCE_METRICS
from rlhf_cli.inference import scoring
from rlhf_cli.models import adapters, loading
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Base
from rlhf_cli.training import held_out_metrics
from tests.support.stage_harness import WORDS
from tests.support.tiny_policy import ADAPTER, EOS, PAD, VOCABULARY
from tests.support.training_project import TrainingProject


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text with its end token."""
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


def load_tokenizer(model: Path) -> Any:
    """Load the tokenizer of a run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def test_sft_nll_is_mean_over_tokens_of_held_out_rows(training_project: TrainingProject) -> None:
    from peft import AutoPeftModelForCausalLM

    rows = [{"prompt": f"{a} and", "completion": f" {a}" * n} for n, a in enumerate(WORDS * 4, 1)]
    training_project.write_rows("sft.jsonl", rows)
    fraction = "data.sft.eval_fraction=0.4"
    result = training_project.train("sft", "sft.learning_rate=0.05", "sft.max_length=20", fraction)
    folder = result.path / "model"
    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(folder)
    total, count = 0.0, 0
    for row in training_project.held_out_sft(fraction):
        start = len(tokenizer(row.prompt)["input_ids"])
        ids = tokenize(tokenizer, f"{row.prompt}{row.completion}")[:20]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)  # (T, V)
        total -= sum(float(logprobs[at - 1, ids[at]]) for at in range(start, len(ids)))
        count += len(ids) - start
    assert count > 50
    assert result.manifest["metrics"]["sft.nll"] == pytest.approx(total / count, rel=1e-4)


def test_reward_accuracy_is_share_of_held_out_pairs_ranked_right(training_project: TrainingProject) -> None:
    from peft import AutoPeftModelForSequenceClassification

    training_project.write_rows(
        "preferences.jsonl",
        (
            {"prompt": f"{a} {b} and", "chosen": f" {b} {a}", "rejected": f" {a}" * n}
            for n, a in enumerate(WORDS * 4, 1)
            for b in WORDS[:3]
        ),
    )
    fraction = "data.preferences.eval_fraction=0.5"
    result = training_project.train("reward", "reward.learning_rate=0.01", "reward.max_length=30", fraction)
    folder = result.path / "model"
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = load_tokenizer(folder)

    def score(ids: list[int]) -> float:
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits[0, 0])

    is_right = []
    for row in training_project.held_out_preferences(fraction):
        chosen = tokenize(tokenizer, f"{row.prompt}{row.chosen}")
        rejected = tokenize(tokenizer, f"{row.prompt}{row.rejected}")
        if max(len(chosen), len(rejected)) <= 30:
            is_right.append(score(chosen) > score(rejected))
    metrics = result.manifest["metrics"]
    assert metrics["reward.accuracy.n"] == len(is_right) > 10
    assert metrics["reward.accuracy"] == pytest.approx(sum(is_right) / len(is_right))
    assert metrics["reward.accuracy.low"] < metrics["reward.accuracy"] < metrics["reward.accuracy.high"]


def test_ranking_of_bfloat16_scorer_with_large_scores_equals_eval(base_folder: Path, reward_folder: Path) -> None:
    """Around 12 a bfloat16 score has steps of 1/16, so a head in bfloat16 would tie many pairs."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 16, (40,), generator=draw).tolist()
    sequences = [[*torch.randint(4, VOCABULARY, (n,), generator=draw).tolist(), EOS] for n in lengths]
    chosen, rejected = sequences[::2], sequences[1::2]
    base = Base(model=str(base_folder), dtype="bfloat16")
    model = MultiAdapterModel.load(base, ADAPTER, str(base_folder), {"reward": reward_folder})
    with torch.no_grad():
        states = [model.hidden_states("reward", torch.tensor([ids]))[0, -1].float() for ids in sequences]
        targets = 12 + 0.02 * torch.randn(len(sequences), generator=draw)
        head = torch.linalg.lstsq(torch.stack(states), targets[:, None], driver="gelsd").solution[:, 0]  # (H,)
        next(model.heads["reward"].parameters()).copy_(head)
    scorer = adapters.attach(
        loading.load_scorer(base, str(base_folder)), ADAPTER, task="SEQ_CLS", start=reward_folder, trainable=True
    )
    scorer.get_base_model().score.weight.data = head[None]  # training keeps it in float32
    trainer = SimpleNamespace(
        model=scorer,
        processing_class=SimpleNamespace(pad_token_id=PAD),
        accelerator=SimpleNamespace(autocast=lambda: torch.autocast("cpu", torch.bfloat16)),
    )
    columns = TokenColumns([{"chosen_ids": chosen, "rejected_ids": rejected}], {})
    by_trainer = held_out_metrics.pair_scores(cast(Trainer, trainer), columns, max_tokens=600)
    found = held_out_metrics.ranking(by_trainer, columns, [PreferenceRow("", "", "", None, {})] * 20)
    scores = scoring.final_scores(model, "reward", chosen + rejected, pad_id=PAD, max_tokens=600)
    assert scores.mean() == pytest.approx(12, abs=0.5)
    better, worse = scores.split(20)
    assert (better != worse).all()
    assert (better.bfloat16() == worse.bfloat16()).any()
    longer = [float(len(a) - len(b)) for a, b in zip(chosen, rejected, strict=True)]
    expected = compute(PREFERENCE_METRICS, "preferences", PreferenceMargins((better - worse).tolist(), longer))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("stage", "override", "metric"),
    [
        ("sft", "data.sft.eval_fraction=0", "sft.nll"),
        ("reward", "data.preferences.eval_fraction=0", "reward.accuracy"),
        ("pretrain", "data.pretrain.eval_fraction=0", "pretrain.nll"),
    ],
)
def test_metric_is_missing_if_nothing_is_held_out(
    training_project: TrainingProject, stage: str, override: str, metric: str
) -> None:
    assert metric not in training_project.train(stage, override, f"{stage}.max_steps=2").manifest["metrics"]
