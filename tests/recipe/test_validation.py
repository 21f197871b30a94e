"""Issues that span several fields or concern files outside the recipe, and recipes that come close to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.loader import read_recipe
from rlhf_cli.recipe.validation import named_stages
from rlhf_cli.stages import STAGES
from tests.support.recipe_files import FindIssues, WriteRecipe, load_recipe

STAGE_DATASETS = [(stage, spec.dataset) for stage, spec in STAGES.items() if spec.dataset is not None]


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """Write files that recipes refer to."""
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "f.py").write_text("from math import sqrt as root\nmade = max\ndef given(): ...\nclass Kind: ...\n")
    (tmp_path / "broken.py").write_text("def (:\n")


@pytest.mark.parametrize(
    ("text", "column", "code", "words"),
    [
        # training
        ("sft: {epochs: 1, max_steps: 2}", 18, "conflicting-keys", "sft.max_steps: cannot be combined with epochs."),
        ("pretrain: {epochs: 1, max_steps: 2}", 23, "conflicting-keys", "pretrain.max_steps: cannot be combined"),
        ("reward: {epochs: 1, max_steps: 2}", 21, "conflicting-keys", "reward.max_steps: cannot be combined"),
        (
            "sft: {batch_size: 12}",
            7,
            "not-divisible",
            "sft.batch_size: not divisible; found 12, expected a multiple of micro_batch_size 8. "
            "Set sft.micro_batch_size to a divisor of 12.",
        ),
        (
            "sft: {batch_size: 4, micro_batch_size: 8}",
            7,
            "not-divisible",
            "Set sft.micro_batch_size to a divisor of 4.",
        ),
        (
            "pretrain: {architecture: {hidden_size: 100, heads: 4}}",
            45,
            "not-divisible",
            "hidden_size 100 cannot be split into 4 heads of even width.",
        ),
        (
            "pretrain: {architecture: {heads: 4, kv_heads: 3}}",
            37,
            "not-divisible",
            "pretrain.architecture.kv_heads: not a divisor of heads; found 3, expected a divisor of 4.",
        ),
        (
            "pretrain: {max_length: 600}",
            12,
            "invalid-value",
            "pretrain.max_length: too long; found 600, expected at most architecture.context 512.",
        ),
        # sample
        (
            "sample: {of: [sft, ppo, base], samples_per_prompt: 4}",
            32,
            "not-divisible",
            "sample.samples_per_prompt: not divisible; found 4, expected a multiple of 3, the number of models in of. "
            "Set it to 6.",
        ),
        ("sample: {of: [sft, spo]}", 20, "invalid-run-reference", "sample.of.1: not a run reference"),
        # feedback
        (
            "feedback: {overlap: 3, max_overlap: 2}",
            24,
            "invalid-value",
            "feedback.max_overlap: below overlap; found 2, expected at least 3. Raise it to overlap or more.",
        ),
        ("feedback: {overlap: 6}", 1, "invalid-value", "max_overlap: below overlap; found 5, expected at least 6."),
        (
            "feedback: {store: 'mysql://host/db'}",
            12,
            "invalid-value",
            "feedback.store: unsupported database; found mysql://, expected a file or postgresql://.",
        ),
        ("feedback: {store: 'postgresql://host:port/db'}", 12, "invalid-value", "feedback.store: invalid URL."),
        ("feedback: {store: 'postgresql://u:secret@host/db'}", 12, "contains-secret", "feedback.store: contains"),
        ("feedback: {store: 'postgresql:///db?password=x'}", 12, "contains-secret", "feedback.store: contains"),
        ("feedback: {guideline: g.md}", 12, "path-not-found", "feedback.guideline: file not found: g.md."),
        ("feedback: {gold: {path: g.jsonl}}", 19, "path-not-found", "feedback.gold.path: file not found: g.jsonl."),
        (
            "feedback: {qualification: {path: q.jsonl}}",
            28,
            "path-not-found",
            "feedback.qualification.path: file not found: q.jsonl.",
        ),
        (
            "feedback: {criteria: [tone, helpful, tone]}",
            12,
            "invalid-value",
            "feedback.criteria: found 'tone' 2 times, expected different names.",
        ),
        ("feedback: {criteria: [' ']}", 12, "invalid-value", "feedback.criteria: found ' ' 1 times"),
        (
            "feedback: {repeats: 0.5, gold: {path: rows.jsonl, share: 0.5}}",
            12,
            "invalid-value",
            "gold.share and repeats leave no other items; found 0.5 + 0.5, expected less than 1.",
        ),
        (
            "feedback: {task: pair}\nsample: {samples_per_prompt: 4}",
            12,
            "conflicting-keys",
            "feedback.task: pair compares 2 completions; found sample.samples_per_prompt 4.",
        ),
        # data
        (
            "data: {sft: {hub: a/b, path: rows.jsonl}}",
            8,
            "conflicting-keys",
            "data.sft: conflicting keys; found path and hub, expected exactly one of path, hub and run. Keep one",
        ),
        ("data: {sft: {run: feedback, path: rows.jsonl}}", 8, "conflicting-keys", "found path and run, expected"),
        (
            "data: {sft: {weight: 2}}",
            8,
            "missing-key",
            "data.sft: missing key; found none, expected exactly one of path, hub and run. Set one of them.",
        ),
        ("data: {sft: [{path: rows.jsonl}, {weight: 2}]}", 34, "missing-key", "data.sft.1: missing key; found none"),
        (
            "data: {sft: {path: row.jsonl}}",
            14,
            "path-not-found",
            "data.sft.path: file not found: row.jsonl. Did you mean rows.jsonl?",
        ),
        (
            "data: {sft: {path: /nowhere/row.jsonl}}",
            14,
            "path-not-found",
            "file not found: /nowhere/row.jsonl. Relative paths are resolved against",
        ),
        (
            "data: {sft: {path: rows.jsonl, config: c}}",
            32,
            "conflicting-keys",
            "data.sft.config: only allowed together with hub. Remove config, or set hub.",
        ),
        ("data: {sft: {path: rows.jsonl, revision: c}}", 32, "conflicting-keys", "data.sft.revision: only allowed"),
        (
            "data: {sft: {hub: a/b, eval_split: t, eval_fraction: 0.1}}",
            24,
            "conflicting-keys",
            "data.sft.eval_split: cannot be combined with eval_fraction. Keep one of them.",
        ),
        # reward sources
        (
            "ppo: {reward: [{run: reward, python: 'f.py:given'}]}",
            16,
            "conflicting-keys",
            "ppo.reward.0: conflicting keys; found run and python",
        ),
        (
            "ppo: {reward: [{run: reward}, {weight: 2}]}",
            31,
            "missing-key",
            "expected exactly one of run, model, python, http, rule and judge.",
        ),
        ("ppo: {reward: [{model: ./gone}]}", 17, "path-not-found", "ppo.reward.0.model: directory not found: gone."),
        (
            "ppo: {reward: [{model: reward}]}",
            17,
            "invalid-value",
            "ppo.reward.0.model: reward is a run; expected a full model. Use {run: …} for a reward run.",
        ),
        (
            "ppo: {reward: [{run: reward, revision: v1}]}",
            30,
            "conflicting-keys",
            "ppo.reward.0.revision: only allowed together with model.",
        ),
        (
            "ppo: {reward: [{run: reward, timeout: 5}]}",
            30,
            "conflicting-keys",
            "ppo.reward.0.timeout: only allowed together with http.",
        ),
        ("ppo: {reward: [{run: reward, batch_size: 5}]}", 30, "conflicting-keys", "ppo.reward.0.batch_size: only"),
        ("ppo: {reward: [{run: reward, retries: 5}]}", 30, "conflicting-keys", "ppo.reward.0.retries: only"),
        (
            "ppo: {reward: [{http: 'ftp://host/x'}]}",
            17,
            "invalid-value",
            "ppo.reward.0.http: invalid URL; expected http or https. Use a URL such as https://host:port/path.",
        ),
        ("ppo: {reward: [{http: 'http:///score'}]}", 17, "invalid-value", "invalid URL; expected http or https."),
        ("ppo: {reward: [{http: 'http://host:port/x'}]}", 17, "invalid-value", "ppo.reward.0.http: invalid URL."),
        ("ppo: {reward: [{http: 'http://host/a b'}]}", 17, "invalid-value", "invalid URL;"),
        ("ppo: {reward: [{http: 'http://hóst/a'}]}", 17, "invalid-value", "invalid URL;"),
        (
            "ppo: {reward: [{rule: {}}]}",
            17,
            "missing-key",
            "ppo.reward.0.rule: missing key; found none, expected exactly one of length, pattern and forbidden.",
        ),
        (
            "ppo: {reward: [{rule: {pattern: x, forbidden: [y]}}]}",
            17,
            "conflicting-keys",
            "found pattern and forbidden, expected",
        ),
        (
            "ppo: {reward: [{rule: {pattern: '(x'}}]}",
            24,
            "invalid-value",
            "ppo.reward.0.rule.pattern: invalid regular expression: missing",
        ),
        (
            "ppo: {reward: [{rule: {forbidden: [x, ' ']}}]}",
            39,
            "invalid-value",
            "ppo.reward.0.rule.forbidden.1: empty. Write a word or a phrase.",
        ),
        ("ppo: {reward: [{rule: {forbidden: []}}]}", 24, "invalid-value", "expected at least one item"),
        (
            "ppo: {reward: [{rule: {length: {}}}]}",
            24,
            "no-effect",
            "ppo.reward.0.rule.length: no effect without min or max. Set min, max or both, in tokens.",
        ),
        (
            "ppo: {reward: [{rule: {length: {min: 5, max: 4}}}]}",
            24,
            "invalid-value",
            "ppo.reward.0.rule.length: no length satisfies the rule; found min 5 and max 4.",
        ),
        # ppo
        (
            "ppo: {minibatches: 3}",
            7,
            "not-divisible",
            "ppo.minibatches: not a divisor of rollout_batch_size; found 3, expected a divisor of 128.",
        ),
        (
            "ppo: {iterations: 5, critic: {warmup_iterations: 5}}",
            31,
            "invalid-value",
            "ppo.critic.warmup_iterations: too many; found 5, expected fewer than the 5 iterations.",
        ),
        (
            "ppo: {kl: {apply_to: loss}}",
            12,
            "no-effect",
            "ppo.kl.apply_to: no effect with estimator k1, whose gradient is zero on average.",
        ),
        (
            "ppo: {kl: {estimator: k3}}",
            12,
            "no-effect",
            "ppo.kl.estimator: k3 does not hold the policy near the reference if KL is part of the reward: its "
            "expected gradient there is about zero; expected k1.",
        ),
        ("ppo: {ptx_coef: 0.1}", 7, "missing-data", "ppo.ptx_coef: needs data.sft, which is not set."),
        # launch
        (
            "launch: {processes: 3}\nppo: {rollout_batch_size: 128}",
            7,
            "not-divisible",
            "ppo.rollout_batch_size: not divisible; found 128, expected a multiple of 3, the number of processes.",
        ),
        (
            "launch: {processes: 3}\nsft: {batch_size: 32}\nppo: {rollout_batch_size: 120}",
            7,
            "not-divisible",
            "found 32, expected a multiple of micro_batch_size 8 × 3 processes. Set sft.batch_size to a multiple of 3.",
        ),
        (
            "launch: {processes: 2, strategy: fsdp}\nppo: {rollout_batch_size: 4, minibatches: 4}",
            30,
            "not-divisible",
            "ppo.minibatches: not divisible; found minibatches of size 1, expected a multiple of 2, the number of "
            "processes, with fsdp.",
        ),
        # evaluation and functions
        (
            "eval: {gates: [{metric: a}]}",
            16,
            "missing-key",
            "eval.gates.0: missing key; expected min, max or both. Add `min:` or `max:`.",
        ),
        (
            "eval: {gates: [{metric: a, min: 0.6, max: 0.5}]}",
            28,
            "invalid-value",
            "eval.gates.0.min: above max; found 0.6, expected at most 0.5. Swap min and max, or remove one of them.",
        ),
        # adapter
        (
            "adapter: {target_modules: [q_proj, lm_head]}",
            11,
            "invalid-value",
            "adapter.target_modules: adapters of embeddings and output heads are not supported; found lm_head.",
        ),
        ("adapter: {target_modules: [q_proj, model.embed_tokens]}", 11, "invalid-value", "found model.embed_tokens."),
        ("adapter: {target_modules: '.*(q_proj|wte)'}", 11, "invalid-value", "not supported; found wte."),
        ("adapter: {target_modules: .*}", 11, "invalid-value", "not supported; found embed_tokens."),
        ("adapter: {target_modules: 'q_proj('}", 11, "invalid-value", "not a regular expression; found q_proj(:"),
        ("adapter: {target_modules: []}", 11, "invalid-value", "no modules; expected at least one."),
        (
            "eval: {python: [f.py]}",
            17,
            "invalid-value",
            "eval.python.0: invalid value; found f.py, expected file.py:function.",
        ),
        ("eval: {python: ['f.txt:given']}", 17, "invalid-value", "expected file.py:function."),
        ("eval: {python: ['g.py:given']}", 17, "path-not-found", "file not found: g.py. Did you mean f.py?"),
        (
            "eval: {python: ['f.py:givn']}",
            17,
            "function-not-found",
            "eval.python.0: f.py: function givn not found. Did you mean given?",
        ),
        ("eval: {python: ['f.py:zzz']}", 17, "function-not-found", "Choose from given, root, made."),
        (
            "eval: {python: ['broken.py:f']}",
            17,
            "function-failed",
            "eval.python.0: broken.py:1: invalid Python: invalid syntax. Fix the file.",
        ),
        ("ppo: {reward: [{python: 'f.py:givn'}]}", 17, "function-not-found", "ppo.reward.0.python: f.py: function"),
        # runs and folders
        (
            "ppo: {reward: [{run: rewards}]}",
            17,
            "invalid-run-reference",
            "ppo.reward.0.run: not a run reference and not a directory; found rewards. Did you mean reward?",
        ),
        ("ppo: {reward: [{run: base}]}", 17, "invalid-run-reference", "found base."),
        ("sft: {start: ./gone}", 7, "path-not-found", "sft.start: directory not found: gone."),
        ("ppo: {start: ./folde}", 7, "path-not-found", "directory not found: folde. Did you mean folder?"),
        (
            "ppo: {start: ./f.py}",
            7,
            "invalid-value",
            "ppo.start: found a file, expected the directory of a model: f.py. Use the directory . if it holds a model",
        ),
        ("pretrain: {start: f.py}", 12, "invalid-value", "found a file, expected the directory of a model: f.py."),
        ("export: {of: f.py}", 10, "invalid-value", "found a file, expected the directory of a model: f.py."),
        ("ppo: {reward: [{model: f.py}]}", 17, "invalid-value", "ppo.reward.0.model: found a file, expected the"),
        ("sft: {start: bas}", 7, "invalid-run-reference", "found bas. Did you mean base?"),
        ("reward: {start: sft@2}", 10, "invalid-run-reference", "found sft@2. Did you mean sft?"),
        ("eval: {candidate: pppo}", 8, "invalid-run-reference", "found pppo. Did you mean ppo?"),
        ("eval: {candidate: scratch}", 8, "invalid-run-reference", "found scratch."),
        ("eval: {reward: base}", 8, "invalid-run-reference", "found base."),
        ("export: {of: base}", 10, "invalid-run-reference", "found base."),
        ("export: {of: zzz}", 10, "invalid-run-reference", "Use a run such as sft, sft@v0002 or name/sft@v0002"),
        ("pretrain: {start: ./gone}", 12, "path-not-found", "pretrain.start: directory not found: gone."),
        (
            "ppo: {start: runs/x/sft}",
            7,
            "path-not-found",
            "directory not found: runs/x/sft. Relative paths are resolved against",
        ),
        ("ppo: {start: foldr/x/sft}", 7, "path-not-found", "directory not found: foldr/x/sft. Did you mean folder?"),
    ],
)
def test_find_issues_of_conflict_is_located_at_its_key(
    find_issues: FindIssues, text: str, column: int, code: str, words: str
) -> None:
    (issue,) = find_issues(text)
    line = 4 if text.startswith("launch") else 3
    assert (issue.code, issue.location) == (f"recipe.{code}", f"r.yaml:{line}:{column}")
    assert words in str(issue)


def test_find_issues_of_float16_with_ppo_is_located_at_the_dtype(
    find_issues: FindIssues, write_recipe: WriteRecipe
) -> None:
    text = "name: x\nbase: {model: org/model, dtype: float16}\ndata: {prompts: {path: rows.jsonl}}"
    (issue,) = find_issues(text, bare=True, stages=("ppo",))
    assert (issue.code, issue.location) == ("recipe.invalid-value", "r.yaml:2:26")
    assert str(issue).startswith("r.yaml:2:26  base.dtype: not supported by ppo, which does not scale its loss")
    load_recipe(write_recipe(text, bare=True), stages=())


@pytest.mark.parametrize(
    "text",
    [
        "sft: {max_steps: 2}",
        "adapter: {target_modules: '.*[qv]_proj'}",
        "eval: {gates: [{metric: a, min: 0.5, max: 0.5}]}",
        "sft: {batch_size: 8, micro_batch_size: 8}",
        "data: {sft: {path: folder}}",
        "data: {sft: {path: rows.jsonl, eval_split: test}}",
        "data: {sft: {hub: a/b, config: c, revision: r}}",
        "pretrain: {max_length: 600, start: org/model}",
        "pretrain: {start: ./folder}",
        "ppo: {reward: [{python: 'f.py:given'}, {python: 'f.py:root'}, {python: 'f.py:made'}, {run: ./folder}]}",
        "ppo: {reward: [{model: ./folder}, {model: org/scorer, revision: v1}, {http: 'https://h:8000/score?model=a'}]}",
        "ppo: {reward: [{http: 'http://[::1]/x', timeout: 0.5, batch_size: 1, retries: 0}]}",
        "ppo: {reward: [{rule: {length: {min: 5}}}, {rule: {length: {max: 5}}}, {rule: {length: {min: 5, max: 5}}}]}",
        "ppo: {reward: [{rule: {pattern: '(?i)thank'}, weight: -1}, {rule: {forbidden: [as an AI]}}]}",
        "ppo: {iterations: 5, critic: {warmup_iterations: 4}}",
        "ppo: {kl: {apply_to: loss, estimator: k2}}",
        "data: {sft: {path: rows.jsonl}}\nppo: {ptx_coef: 0.1}",
        "launch: {processes: 2}\nsft: {batch_size: 32}\nppo: {rollout_batch_size: 128}",
        "launch: {processes: 3}\nppo: {rollout_batch_size: 120}",  # the sizes of stages without a section do not count
        "eval: {gates: [{metric: a, max: 0}], candidate: base, baseline: null, reward: null}",
        "sft: {start: ./folder, trainer: {optim: sgd}}",
        "ppo: {start: other/sft@v0001}",
    ],
)
def test_find_issues_of_valid_recipe_is_empty(write_recipe: WriteRecipe, text: str) -> None:
    load_recipe(write_recipe(text), stages=())


@pytest.mark.parametrize(
    "url",
    [
        "https://ann:hunter2@host/score",
        "https://hunter2@host",
        "http://host/x?api_key=hunter2",
        "http://host?Token=hunter2",
        "http://ann:hunter2/@host",
    ],
)
def test_url_with_secret_is_refused_and_not_repeated(
    write_recipe: WriteRecipe, find_issues: FindIssues, url: str
) -> None:
    (issue,) = find_issues(f"ppo: {{reward: [{{http: '{url}'}}]}}")
    path = write_recipe("ppo: {reward: [{http: 'http://host'}]}")
    with pytest.raises(RecipeError) as raised:
        read_recipe(path, [f"ppo.reward.0.http={url}"], stages=())
    for found in (issue, *raised.value.issues):
        assert found.code in ("recipe.contains-secret", "recipe.invalid-value")
        assert "ppo.reward.0.http: " in found.message
        assert "hunter2" not in str(found)
    assert "RLHF_REWARD_TOKEN" in issue.hint or "Use a URL" in issue.hint


def test_text_with_secret_is_refused_and_not_repeated(find_issues: FindIssues) -> None:
    token = f"hf_{'a' * 30}"
    (issue,) = find_issues(f"data: {{sft: {{hub: a/b, revision: {token}}}}}")
    assert (issue.code, issue.location) == ("recipe.contains-secret", "r.yaml:3:24")
    problem = "contains a password or a token, which would be visible in the run's recipe.yaml."
    assert issue.message == f"data.sft.revision: {problem}"
    assert token not in str(issue)


def test_reward_model_folder_of_run_is_refused(tmp_path: Path, find_issues: FindIssues) -> None:
    (tmp_path / "v0001").mkdir()
    (tmp_path / "v0001" / "manifest.json").touch()
    (issue,) = find_issues("ppo: {reward: [{model: ./v0001}]}")
    assert issue.code == "recipe.invalid-value"
    assert issue.message.startswith("ppo.reward.0.model: v0001 is a run")


def test_null_adapter_with_quantized_base_and_adapter_export_has_issues(find_issues: FindIssues) -> None:
    text = "name: x\nbase: {model: a/b, quantize: nf4}\nadapter: null\nexport: {format: adapter}"
    issues = find_issues(text, bare=True)
    assert [(issue.code, issue.location, issue.message) for issue in issues] == [
        (
            "recipe.conflicting-keys",
            "r.yaml:2:20",
            "base.quantize: nf4 weights cannot be trained, but the recipe sets adapter: null.",
        ),
        (
            "recipe.conflicting-keys",
            "r.yaml:4:10",
            "export.format: no adapter to export, because the recipe sets adapter: null.",
        ),
    ]


def test_members_without_adapter_have_an_issue(find_issues: FindIssues) -> None:
    (issue,) = find_issues("adapter: null\nreward: {members: 3}")
    assert (issue.code, issue.location) == ("recipe.conflicting-keys", "r.yaml:4:10")


def test_combine_with_one_member_has_no_effect(find_issues: FindIssues, write_recipe: WriteRecipe) -> None:
    source = "ppo: {reward: [{run: reward, combine: min}]}"
    (issue,) = find_issues(f"reward: {{epochs: 1}}\n{source}")
    assert (issue.code, issue.location) == ("recipe.no-effect", "r.yaml:4:30")
    load_recipe(write_recipe(f"reward: {{members: 2}}\n{source}"), stages=())
    load_recipe(write_recipe(source), stages=())  # the run may be of an earlier version of the recipe


def test_fsdp_with_null_adapter_or_quantized_base_has_issues(find_issues: FindIssues) -> None:
    (full,) = find_issues("adapter: null\nlaunch: {strategy: fsdp}")
    assert (full.code, full.location) == ("recipe.conflicting-keys", "r.yaml:4:10")
    assert full.message == "launch.strategy: fsdp can shard only a frozen base model, but adapter: null trains it."
    text = "name: x\nbase: {model: a/b, quantize: int8}\nlaunch: {strategy: fsdp}"
    (quantized,) = find_issues(text, bare=True)
    assert quantized.message == "launch.strategy: fsdp cannot shard int8 weights."


@pytest.mark.parametrize(("stage", "kind"), STAGE_DATASETS)
def test_missing_dataset_of_stage_that_will_run_has_issue(
    write_recipe: WriteRecipe, find_issues: FindIssues, stage: str, kind: str
) -> None:
    (issue,) = [found for found in find_issues(f"{stage}:", stages=None) if found.code == "recipe.missing-data"]
    assert issue.location == "r.yaml:3:1"
    assert issue.message == f"data.{kind}: missing dataset; {stage} needs it."
    assert issue.hint == f"Add data.{kind}: {{path: …}}."
    (named,) = [found for found in find_issues("data:", stages=(stage,)) if found.code == "recipe.missing-data"]
    assert named.message == issue.message
    load_recipe(write_recipe(f"{stage}:"), stages=("export",))  # another stage does not need it


def test_named_stages_returns_them_in_the_order_of_the_chain(write_recipe: WriteRecipe) -> None:
    assert named_stages(load_recipe(write_recipe("export:\nppo:\nsft:\n"), stages=())) == ["sft", "ppo", "export"]
