"""A local model as judge, compared with plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli.ai_feedback.local import LocalModel, ModelSource
from rlhf_cli.ai_feedback.questions import COMPARE_ANSWERS, RATE_ANSWERS, Answers
from rlhf_cli.errors import ModelError
from rlhf_cli.recipe.schema import Adapter, Base
from tests.support.issues import raises_issue

QUESTIONS = ["Which is better?", "A cat, or the dog who lived by the sea?", "x"]


def log_odds_by_transformers(folder: Path, question: str, answers: Answers, adapter: Path | None = None) -> float:
    """Return the log-odds of the answers after the plain-text template, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    ids = [tokenizer(f"User: {question}\nAssistant: {answer}")["input_ids"] for answer in answers]
    shared = next(index for index, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    with torch.no_grad():
        logits = model(torch.tensor([ids[0][:shared]])).logits[0, -1]
    logprobs = logits.log_softmax(-1)
    return float(logprobs[ids[0][shared]] - logprobs[ids[1][shared]])


@pytest.mark.parametrize("answers", [COMPARE_ANSWERS, RATE_ANSWERS])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_log_odds_equal_those_of_transformers(tiny_base: Path, answers: Answers, batch_size: int) -> None:
    base = Base(model=str(tiny_base))
    model = LocalModel(ModelSource(base, Adapter(), str(tiny_base), None), batch_size=batch_size)
    model.load(smoke=False)
    expected = [log_odds_by_transformers(tiny_base, question, answers) for question in QUESTIONS]
    # Log-probabilities of about 6 in float32 have a spacing of 5e-7; a different order of sums changes a few.
    assert model.log_odds(QUESTIONS, answers) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == 3


def test_log_odds_of_another_whole_model_are_its_own(tiny_base: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    other = AutoModelForCausalLM.from_pretrained(tiny_base)
    torch.nn.init.normal_(other.lm_head.weight, std=0.5)
    other.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path)
    source = ModelSource(Base(model="not/used"), Adapter(), "not/used", str(tmp_path))
    model = LocalModel(source, batch_size=2)
    model.load(smoke=False)
    expected = [log_odds_by_transformers(tmp_path, question, COMPARE_ANSWERS) for question in QUESTIONS]
    assert model.log_odds(QUESTIONS, COMPARE_ANSWERS) == pytest.approx(expected, abs=1e-5)


def test_log_odds_of_an_adapter_are_those_of_the_base_with_it(tiny_base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), settings)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter = tmp_path / "adapter"
    tuned.save_pretrained(adapter)
    source = ModelSource(Base(model=str(tiny_base)), Adapter(rank=4, alpha=8), str(tiny_base), str(adapter))
    model = LocalModel(source, batch_size=2)
    model.load(smoke=False)
    expected = [log_odds_by_transformers(tiny_base, q, COMPARE_ANSWERS, adapter) for q in QUESTIONS]
    assert model.log_odds(QUESTIONS, COMPARE_ANSWERS) == pytest.approx(expected, abs=1e-5)


def test_question_beyond_the_positions_of_the_model_gives_none(tiny_base: Path) -> None:
    model = LocalModel(ModelSource(Base(model=str(tiny_base)), Adapter(), str(tiny_base), None), batch_size=2)
    model.load(smoke=False)
    found = model.log_odds(["short", "long " * 512], COMPARE_ANSWERS)
    assert found[0] is not None
    assert found[1] is None


def test_tokenizer_without_the_answers_is_refused(tiny_base: Path) -> None:
    model = LocalModel(ModelSource(Base(model=str(tiny_base)), Adapter(), str(tiny_base), None), batch_size=2)
    model.load(smoke=False)
    with raises_issue("model.judge-tokenizer", error=ModelError):
        model.log_odds(["q"], Answers("A", "A"))
