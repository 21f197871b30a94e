"""Issues of single fields: wrong types and values, missing keys, and unknown keys with what was meant."""

from __future__ import annotations

import pytest

from tests.support.recipe_files import FindIssues


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('sft: {batch_size: "8"}', "sft.batch_size: invalid value; found '8', expected an integer."),
        ("sft: {batch_size: 8.0}", "found 8.0, expected an integer"),
        ("sft: {batch_size: true}", "found true, expected an integer"),
        ("sft: {batch_size: 0}", "found 0, expected a value greater than 0"),
        ("sft: {learning_rate: yes}", "found 'yes', expected a number"),
        ("adapter: {dora: no}", "found 'no', expected true or false"),
        ("adapter: {rank: }", "found null, expected an integer"),
        ("ppo: {gamma: .nan}", "found .nan, expected a finite number"),
        ("ppo: {learning_rate: .inf}", "found .inf, expected a finite number"),
        ("ppo: {learning_rate: 1e999}", "expected a finite number"),
        ("ppo: {gae_lambda: 1.5}", "found 1.5, expected a value less than or equal to 1"),
        ("seed: 99999999999999999999", "expected a value less than 4294967296"),
        ("base: {model: a/b, dtype: half}", "expected 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("ppo: 7", "found 7, expected a mapping"),
        ("sft: [1]", "found a list, expected a mapping"),
        ("ppo: {reward: {run: reward}}", "found a mapping, expected a list"),
        ("ppo: {reward: []}", "found a list, expected at least one item"),
        ("ppo: {reward: [reward]}", "ppo.reward.0: invalid value; found reward, expected a mapping."),
        ("data: {sft: []}", "expected at least one item"),
        ("data: {sft: a.jsonl}", "expected a mapping such as {path: rows.jsonl}, or a list of mappings"),
        ("adapter: {target_modules: 3}", "found 3, expected text or a list"),
        ("sft: {trainer: 5}", "found 5, expected a mapping"),
    ],
)
def test_invalid_value_is_reported_once_in_the_words_of_a_recipe(
    find_issues: FindIssues, text: str, words: str
) -> None:
    head = "name: x\n\n" if text.startswith("base") else "name: x\nbase: {model: org/model}\n"
    (issue,) = find_issues(head + text, bare=True)
    assert issue.code == "recipe.invalid-value"
    assert issue.location.startswith("r.yaml:3:")
    assert words in str(issue)


def test_invalid_value_number_for_text_has_hint_to_quote_it(find_issues: FindIssues) -> None:
    (issue,) = find_issues("name: x\nbase: {model: a/b, revision: 123}", bare=True)
    assert str(issue) == "r.yaml:2:20  base.revision: invalid value; found 123, expected text. Put it in quotes."


def test_invalid_value_of_any_length_gives_a_short_message(find_issues: FindIssues) -> None:
    (issue,) = find_issues(f"sft: {{batch_size: {'x' * 10_000}}}")
    assert len(str(issue)) < 200


@pytest.mark.parametrize("name", ["a/b", "..", "", "x\\n", "a b", "ö", "-x", "x" * 101])
def test_name_that_is_not_a_plain_folder_name_is_invalid(find_issues: FindIssues, name: str) -> None:
    (issue,) = find_issues(f'name: "{name}"\nbase: {{model: a/b}}', bare=True)
    assert (issue.code, issue.location) == ("recipe.invalid-value", "r.yaml:1:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: {model: a/b}", "name: missing key."),
        ("name: x", "base: missing key."),
        ("name: x\nbase:", "base.model: missing key."),
        ("name: x\nbase: {model: a/b}\neval: {gates: [{min: 3}]}", "eval.gates.0.metric: missing key."),
    ],
)
def test_missing_key_is_reported_with_hint_to_add_it(find_issues: FindIssues, text: str, message: str) -> None:
    (issue,) = find_issues(text, bare=True)
    key = message.partition(":")[0].rpartition(".")[2]
    assert (issue.code, issue.message, issue.hint) == ("recipe.missing-key", message, f"Add `{key}:`.")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ppo: {learnig_rate: 1}", "Did you mean learning_rate?"),
        ("pp: {}", "Did you mean ppo?"),
        ("extend: a.yaml", "Did you mean extends?"),
        ("sft: {clip: 0.2}", "Move it to ppo."),
        ("minibatches: 4", "Move it to ppo."),
        ("ppo: {rank: 4}", "Move it to adapter."),
        ("ppo: {warmup_iterations: 4}", "Move it to ppo.critic."),
        (
            "data: {eval_fraction: 0.1}",
            "Move it to data.pretrain, data.sft, data.preferences, data.prompts or feedback.",
        ),
        ("eval: {gates: [{metric: a, min: 1, mx: 2}]}", "Did you mean max?"),
        ("data: {sft: [{path: r.yaml}, {path: r.yaml, wieght: 2}]}", "Did you mean weight?"),
        ("export: {zzz: 4}", "Allowed keys: of, format, dtype."),
        ("sft: {weight_decay: 0.1}", "Move it to `trainer:` in this section."),
        ("ppo: {weight_decay: 0.1}", "Move it to `trainer:` in this section."),
        ("reward: {center_rewards_coefficient: 0.1}", "Move it to `trainer:` in this section."),
    ],
)
def test_unknown_key_has_hint_about_what_was_meant(find_issues: FindIssues, text: str, hint: str) -> None:
    (issue,) = find_issues(text)
    assert (issue.code, issue.hint) == ("recipe.unknown-key", hint)
    assert issue.message.endswith(": unknown key.")
