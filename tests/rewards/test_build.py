"""Reward sources: functions with TRL's signature, reward runs, sums, and what is told where one misbehaves."""

import numpy as np
import pytest
import torch

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DivergedError, RecipeError
from rlhf_cli.inference import scoring
from rlhf_cli.recipe.schema import RewardSource
from rlhf_cli.rewards import build
from tests.support.tiny_policy import PAD

PROMPTS, COMPLETIONS = ["a", "b"], ["one", "three"]


def write(folder, body, name="judge.py"):
    (folder / name).write_text(body)
    return f"{folder / name}:score"


def call(tmp_path, body, columns=None, name="judge.py"):
    return build.call(build.load_function(write(tmp_path, body, name)), PROMPTS, COMPLETIONS, columns or {})


def test_a_function_gets_what_its_signature_takes(tmp_path):
    assert call(tmp_path, "def score(completions): return [len(c) for c in completions]", {"x": [1, 2]}) == [3.0, 5.0]
    body = "def score(prompts, completions, level, scale=2.0): return [scale * n for n in level]"
    assert call(tmp_path, body, {"level": [1, 2], "other": [0, 0]}, "b.py") == [2.0, 4.0]
    body = "def score(completions, **columns): assert set(columns) == {'prompts', 'x'}; return columns['x']"
    assert call(tmp_path, body, {"x": [1, 2]}, "c.py") == [1.0, 2.0]


@pytest.mark.parametrize(
    "values", [[1, 2.0], np.array([1.0, 2.0]), [np.float32(1), np.int64(2)], torch.tensor([1.0, 2.0]), [True, 2]]
)
def test_numbers_of_other_libraries_are_numbers(values):
    assert build.call(lambda completions: values, PROMPTS, COMPLETIONS, {}) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def score(completions): return [1.0]", "gave 1 numbers for 2 completions"),
        ("def score(completions): return None", "gave None for 2 completions"),
        ("def score(completions): return 'good'", "gave 'good' for 2 completions"),
        ("def score(completions): return [1.0, 'good']", "completion 1 got 'good'"),
        ("def score(completions): return [None, 1.0]", "completion 0 got None"),
    ],
)
def test_a_function_that_misbehaves_is_named_with_its_file(tmp_path, body, told):
    with pytest.raises(DivergedError, match=r"judge\.py:score") as caught:
        call(tmp_path, body)
    assert told in str(caught.value)
    assert caught.value.code == 7


@pytest.mark.parametrize(
    ("body", "line", "told"),
    [
        ("def score(completions):\n    raise KeyError('tone')", 2, "score raised KeyError: 'tone' (first completion"),
        ("import sys\ndef score(completions): sys.exit()", 2, "score raised SystemExit ("),
        ("import json\n\ndef score(completions):\n    return json.loads('{')", 4, "score raised JSONDecodeError"),
        ("def score(completions):\n    yield 1.0\n    yield 1 / 0", 3, "score raised ZeroDivisionError"),
    ],
)
def test_a_function_that_raises_is_told_with_the_line_that_led_to_it(tmp_path, body, line, told):
    with pytest.raises(DivergedError) as caught:
        call(tmp_path, body)
    assert caught.value.issues[0].location == f"{tmp_path}/judge.py:{line}"
    assert told in caught.value.issues[0].message
    assert caught.value.__cause__ is not None  # whose traceback goes into the log


def test_a_column_that_the_data_lacks_is_told(tmp_path):
    with pytest.raises(RecipeError, match=r"asks for answer, and there is .*level"):
        call(tmp_path, "def score(completions, answer): return [0.0, 0.0]", {"level": [1, 2]})


def test_a_column_that_the_data_lacks_is_told_without_calling_the_function(tmp_path):
    judge = build.terms([RewardSource(python=write(tmp_path, "def score(prompts, answer, prompt_ids): 1 / 0"))])[
        0
    ].judge
    judge.check([PromptRow("p", {"answer": 3})])
    with pytest.raises(RecipeError, match=r"asks for answer, and there is level, prompt_ids, completion_ids, prompts,"):
        judge.check([PromptRow("p", {"level": 3})])


def test_a_function_whose_parameters_cannot_be_told_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="its parameters cannot be told"):
        call(tmp_path, "score = max")


def test_an_integer_beyond_floats_is_not_finite(tmp_path):
    assert call(tmp_path, "def score(completions): return [10**400, 1]") == [float("inf"), 1.0]


def test_a_file_that_is_absent_or_broken_or_lacks_the_function_is_told(tmp_path):
    with pytest.raises(RecipeError, match=r"no file .*absent\.py"):
        build.load_function(f"{tmp_path}/absent.py:score")
    with pytest.raises(RecipeError, match="ZeroDivisionError"):
        build.load_function(write(tmp_path, "1 / 0"))
    with pytest.raises(RecipeError, match="SystemExit: 0"):
        build.load_function(write(tmp_path, "raise SystemExit(0)", "script.py"))
    with pytest.raises(RecipeError, match="no function score"):
        build.load_function(write(tmp_path, "x = 1", "b.py"))


def test_a_file_may_import_its_neighbour(tmp_path):
    (tmp_path / "neighbour_of_judge.py").write_text("WORTH = 4")
    assert call(tmp_path, "from neighbour_of_judge import WORTH\ndef score(completions): return [WORTH] * 2") == [4, 4]


def answered(rows, completions, responses=None):
    responses = responses or [[5, 2]] * len(rows)
    return build.Completions(rows, [[4]] * len(rows), responses, completions)


def test_terms_are_scored_apart_and_summed_with_weights(tmp_path, make_cast, sft_folder, reward_folder, ragged):
    length = write(tmp_path, "def score(completion_ids): return [float(len(ids)) for ids in completion_ids]")
    terms = build.terms([RewardSource(run="reward", weight=2.0), RewardSource(python=length, weight=-0.5)])
    assert [(term.name, term.role) for term in terms] == [("reward", "reward"), ("score", None)]
    prompts, responses = ragged
    bank = make_cast(sft_folder, reward_folder).bank
    rows = [PromptRow("p", {})] * len(prompts)
    given = build.Completions(rows, prompts, responses, ["x"] * len(prompts))
    scores = build.score(terms, bank, given, pad_id=PAD, max_tokens=64)
    whole = [p + r for p, r in zip(prompts, responses, strict=True)]  # the truncated one has no end token
    by_model = scoring.final_scores(bank, "reward", whole, pad_id=PAD, max_tokens=64)
    torch.testing.assert_close(scores["reward"], by_model)
    lengths = torch.tensor([float(len(r)) for r in responses])
    torch.testing.assert_close(scores["score"], lengths)
    torch.testing.assert_close(build.weighted(terms, scores), 2 * by_model - 0.5 * lengths)


def test_two_terms_of_one_name_are_told_apart(tmp_path):
    spec = write(tmp_path, "def score(completions): return [0.0]")
    sources = [RewardSource(python=spec), RewardSource(python=spec), RewardSource(run="reward")]
    terms = build.terms([*sources, RewardSource(run="other/reward@v0002")])
    assert [term.name for term in terms] == ["score", "score_2", "reward", "reward_2"]
    assert [term.role for term in terms] == [None, None, "reward", "reward_2"]


def test_a_term_does_not_take_the_name_of_the_loops_own_figure(tmp_path):
    """`reward.std` is the spread of the whole reward."""
    (tmp_path / "judge.py").write_text("def std(completions): return [0.0]")
    terms = build.terms([RewardSource(python=f"{tmp_path}/judge.py:std"), RewardSource(run="runs/std")])
    assert [term.name for term in terms] == ["std_2", "std_3"]


def test_a_conversation_gets_a_message_and_text_gets_text():
    assert build.as_completion("Ask:", " yes") == " yes"
    conversation = [{"role": "user", "content": "?"}]
    assert build.as_completion(conversation, " yes ") == [{"role": "assistant", "content": "yes"}]


def test_columns_reach_the_function_row_by_row(tmp_path, make_cast):
    spec = write(
        tmp_path,
        "def score(prompts, completions, key): return [1.0 if k == c else 0.0 for k, c in zip(key, completions)]",
    )
    rows = [PromptRow("p", {"key": "x"}), PromptRow("q", {"key": "y"})]
    scores = build.score(
        build.terms([RewardSource(python=spec)]),
        make_cast().bank,
        answered(rows, ["x", "x"]),
        pad_id=PAD,
        max_tokens=9,
    )
    assert scores["score"].tolist() == [1.0, 0.0]


def test_none_adds_nothing_to_the_sum(tmp_path, make_cast):
    """As in TRL: a function gives None for what it does not judge."""
    (tmp_path / "judge.py").write_text(
        "def every(completions): return [1.0, 2.0]\ndef some(completions): return [None, 5.0]"
    )
    sources = [RewardSource(python=f"{tmp_path}/judge.py:{name}", weight=2.0) for name in ("every", "some")]
    terms = build.terms(sources)
    given = answered([PromptRow("p", {}), PromptRow("q", {})], ["x", "y"])
    scores = build.score(terms, make_cast().bank, given, pad_id=PAD, max_tokens=9)
    assert build.weighted(terms, scores).tolist() == [2.0, 14.0]


def test_a_reward_that_is_not_finite_stops_the_run(tmp_path, make_cast):
    spec = write(tmp_path, "def score(completions): return [0.0, float('nan')]")
    rows = [PromptRow("p", {}), PromptRow("q", {})]
    with pytest.raises(DivergedError, match=r"score.* reward of response 1 is nan: 'bad'"):
        build.score(
            build.terms([RewardSource(python=spec)]),
            make_cast().bank,
            answered(rows, ["ok", "bad"]),
            pad_id=PAD,
            max_tokens=9,
        )


def test_a_reward_run_is_logged_by_its_stage_whatever_its_version():
    found = build.terms([RewardSource(run="demo/reward@v0003"), RewardSource(run="reward")])
    assert [term.name for term in found] == ["reward", "reward_2"]
