"""Each issue that spans several fields or reaches outside the recipe, and the recipes that come close to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.loader import load
from rlhf_cli.recipe.trainer_options import RUNS_OWN, SET_BY, known_keys
from rlhf_cli.recipe.validation import named_stages
from tests.support.recipe_files import FaultsOf, Write

LINE = "r.yaml:3:"


@pytest.fixture
def files(write: Write, tmp_path: Path) -> None:
    """Files that a recipe may name."""
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "f.py").write_text("from math import sqrt as root\nmade = max\ndef given(): ...\nclass Kind: ...\n")
    (tmp_path / "broken.py").write_text("def (:\n")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("sft: {epochs: 1, max_steps: 2}", 18, "sft: epochs and max_steps are both set."),
        ("pretrain: {epochs: 1, max_steps: 2}", 23, "pretrain: epochs and max_steps are both set."),
        ("reward: {epochs: 1, max_steps: 2}", 21, "reward: epochs and max_steps are both set."),
        ("sft: {batch_size: 12}", 7, "sft.batch_size: 12 is not a multiple of micro_batch_size 8."),
        ("sft: {batch_size: 4, micro_batch_size: 8}", 7, "Set sft.micro_batch_size to a divisor of 4."),
        ("data: {sft: {hub: a/b, path: rows.jsonl}}", 8, "exactly one of path, hub and run; found path and hub."),
        ("data: {sft: {run: feedback, path: rows.jsonl}}", 8, "exactly one of path, hub and run; found path and run."),
        ("data: {sft: {weight: 2}}", 8, "data.sft: needs exactly one of path, hub and run; none is set. Set one"),
        ("data: {sft: [{path: rows.jsonl}, {weight: 2}]}", 34, "data.sft.1: needs exactly one of path, hub and run"),
        ("data: {sft: {path: row.jsonl}}", 14, "data.sft.path: there is no row.jsonl. Did you mean rows.jsonl?"),
        ("data: {sft: {path: /nowhere/row.jsonl}}", 14, "there is no /nowhere/row.jsonl. A relative path begins at"),
        ("data: {sft: {path: rows.jsonl, config: c}}", 32, "data.sft.config: belongs to a hub data set."),
        ("data: {sft: {path: rows.jsonl, revision: c}}", 32, "data.sft.revision: belongs to a hub data set."),
        ("data: {sft: {hub: a/b, eval_split: t, eval_fraction: 0.1}}", 24, "eval_split and eval_fraction are both"),
        ("pretrain: {architecture: {hidden_size: 100, heads: 4}}", 45, "does not give each of 4 heads an even width"),
        ("pretrain: {architecture: {heads: 4, kv_heads: 3}}", 37, "4 heads cannot share 3 kv_heads."),
        ("pretrain: {max_length: 600}", 12, "pretrain.max_length: 600 is more than architecture.context 512."),
        ("ppo: {reward: [{run: reward, python: 'f.py:given'}]}", 16, "found run and python. Keep one of them"),
        ("ppo: {reward: [{run: reward}, {weight: 2}]}", 31, "run, model, python, http and rule; none is set. Set one"),
        ("ppo: {reward: [{model: ./gone}]}", 17, "ppo.reward.0.model: there is no folder gone."),
        ("ppo: {reward: [{model: reward}]}", 17, "ppo.reward.0.model: reward is a run. Write {run: …} for it."),
        ("ppo: {reward: [{run: reward, revision: v1}]}", 30, "ppo.reward.0.revision: belongs to model."),
        ("ppo: {reward: [{run: reward, timeout: 5}]}", 30, "ppo.reward.0.timeout: belongs to http."),
        ("ppo: {reward: [{run: reward, batch_size: 5}]}", 30, "ppo.reward.0.batch_size: belongs to http."),
        ("ppo: {reward: [{run: reward, retries: 5}]}", 30, "ppo.reward.0.retries: belongs to http."),
        ("ppo: {reward: [{http: 'ftp://host/x'}]}", 17, "ppo.reward.0.http: is no URL of http or https."),
        ("ppo: {reward: [{http: 'http:///score'}]}", 17, "is no URL of http or https. Write https://host:port/path."),
        ("ppo: {reward: [{http: 'http://host:port/x'}]}", 17, "ppo.reward.0.http: is no URL: ValueError."),
        ("ppo: {reward: [{http: 'http://host/a b'}]}", 17, "is no URL of http or https."),
        ("ppo: {reward: [{http: 'http://hóst/a'}]}", 17, "is no URL of http or https."),
        ("ppo: {reward: [{rule: {}}]}", 17, "ppo.reward.0.rule: needs exactly one of length, pattern and forbidden;"),
        ("ppo: {reward: [{rule: {pattern: x, forbidden: [y]}}]}", 17, "found pattern and forbidden. Keep one of them."),
        (
            "ppo: {reward: [{rule: {pattern: '(x'}}]}",
            24,
            "ppo.reward.0.rule.pattern: is no regular expression: missing",
        ),
        ("ppo: {reward: [{rule: {forbidden: [x, ' ']}}]}", 39, "ppo.reward.0.rule.forbidden.1: is empty."),
        ("ppo: {reward: [{rule: {forbidden: []}}]}", 24, "expected at least one item"),
        ("ppo: {reward: [{rule: {length: {}}}]}", 24, "ppo.reward.0.rule.length: keeps every answer."),
        ("ppo: {reward: [{rule: {length: {min: 5, max: 4}}}]}", 24, "at least 5 tokens and at most 4."),
        (
            "ppo: {reward: [{run: rewards}]}",
            17,
            "ppo.reward.0.run: rewards is neither a run nor a folder. Did you",
        ),
        ("ppo: {reward: [{run: base}]}", 17, "ppo.reward.0.run: base is neither a run nor a folder."),
        ("ppo: {minibatches: 3}", 7, "ppo.minibatches: 3 does not divide rollout_batch_size 128."),
        ("ppo: {iterations: 5, critic: {warmup_iterations: 5}}", 31, "5 leaves none of 5 iterations to the policy."),
        ("eval: {gates: [{metric: a}]}", 16, "eval.gates.0: needs min or max."),
        ("eval: {python: [f.py]}", 17, "found f.py, expected file.py:function."),
        ("eval: {python: ['f.txt:given']}", 17, "expected file.py:function."),
        ("eval: {python: ['g.py:given']}", 17, "there is no file g.py. Did you mean f.py?"),
        ("eval: {python: ['f.py:givn']}", 17, "f.py has no function givn. Did you mean given?"),
        ("eval: {python: ['f.py:zzz']}", 17, "It defines given, root, made."),
        ("eval: {python: ['broken.py:f']}", 17, "eval.python.0: broken.py:1 is not Python: invalid syntax. Mend"),
        ("ppo: {reward: [{python: 'f.py:givn'}]}", 17, "ppo.reward.0.python: f.py has no function givn."),
        ("sft: {start: ./gone}", 7, "sft.start: there is no folder gone."),
        ("ppo: {start: ./folde}", 7, "ppo.start: there is no folder folde. Did you mean folder?"),
        ("sft: {start: bas}", 7, "sft.start: bas is neither a run nor a folder. Did you mean base?"),
        ("reward: {start: sft@2}", 10, "reward.start: sft@2 is neither a run nor a folder. Did you mean sft?"),
        ("eval: {candidate: pppo}", 8, "eval.candidate: pppo is neither a run nor a folder. Did you mean ppo?"),
        ("eval: {reward: base}", 8, "eval.reward: base is neither a run nor a folder."),
        ("export: {of: base}", 10, "export.of: base is neither a run nor a folder."),
        ("pretrain: {start: ./gone}", 12, "pretrain.start: there is no folder gone."),
        ("ppo: {start: runs/x/sft}", 7, "ppo.start: there is no folder runs/x/sft. A relative path begins at"),
        ("ppo: {start: foldr/x/sft}", 7, "ppo.start: there is no folder foldr/x/sft. Did you mean folder?"),
    ],
)
def test_a_fault_across_fields_is_told_at_its_key(faults_of: FaultsOf, text: str, column: int, says: str) -> None:
    (issue,) = faults_of(text)
    assert issue.location == f"{LINE}{column}"
    assert says in str(issue)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "text",
    [
        "sft: {max_steps: 2}",
        "sft: {batch_size: 8, micro_batch_size: 8}",
        "data: {sft: {path: folder}}",
        "data: {sft: {path: rows.jsonl, eval_split: test}}",
        "data: {sft: {hub: a/b, config: c, revision: r}}",
        "pretrain: {max_length: 600, start: org/model}",
        "ppo: {reward: [{python: 'f.py:given'}, {python: 'f.py:root'}, {python: 'f.py:made'}, {run: ./folder}]}",
        "ppo: {reward: [{model: ./folder}, {model: org/scorer, revision: v1}, {http: 'https://h:8000/score?model=a'}]}",
        "ppo: {reward: [{http: 'http://[::1]/x', timeout: 0.5, batch_size: 1, retries: 0}]}",
        "ppo: {reward: [{rule: {length: {min: 5}}}, {rule: {length: {max: 5}}}, {rule: {length: {min: 5, max: 5}}}]}",
        "ppo: {reward: [{rule: {pattern: '(?i)thank'}, weight: -1}, {rule: {forbidden: [as an AI]}}]}",
        "ppo: {iterations: 5, critic: {warmup_iterations: 4}}",
        "eval: {gates: [{metric: a, max: 0}], candidate: base, baseline: null, reward: null}",
        "sft: {start: ./folder, trainer: {optim: sgd}}",
        "ppo: {start: other/sft@v0001}",
    ],
)
def test_what_comes_close_is_taken(write: Write, text: str) -> None:
    load(write(text), stages=())


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
def test_a_url_with_a_password_is_refused_and_not_repeated(write: Write, faults_of: FaultsOf, url: str) -> None:
    (issue,) = faults_of(f"ppo: {{reward: [{{http: '{url}'}}]}}")
    with pytest.raises(RecipeError) as raised:
        load(write("ppo: {reward: [{http: 'http://host'}]}"), [f"ppo.reward.0.http={url}"], stages=())
    for told in (issue, *raised.value.issues):
        assert "ppo.reward.0.http: " in told.message
        assert "hunter2" not in str(told)
    assert "RLHF_REWARD_TOKEN" in issue.hint or "Write https://host" in issue.hint


def test_a_run_of_another_name_is_no_reward_model_to_load(write: Write, tmp_path: Path, faults_of: FaultsOf) -> None:
    (tmp_path / "v0001").mkdir()
    (tmp_path / "v0001" / "manifest.json").touch()
    (issue,) = faults_of("ppo: {reward: [{model: ./v0001}]}")
    assert (issue.message, issue.hint) == ("ppo.reward.0.model: v0001 is a run.", "Write {run: …} for it.")


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward"])
@pytest.mark.parametrize("key", sorted([*SET_BY, *RUNS_OWN]))
def test_what_the_run_owns_is_refused_in_trainer(faults_of: FaultsOf, stage: str, key: str) -> None:
    (issue,) = faults_of(f"{stage}: {{trainer: {{{key}: 1}}}}")
    assert issue.message == f"{stage}.trainer.{key}: the run owns this key."
    assert SET_BY.get(key, "Remove") in issue.hint


def test_a_trainer_key_that_trl_has_not_is_told_with_the_nearest(write: Write, faults_of: FaultsOf) -> None:
    (issue,) = faults_of("sft: {trainer: {warmup_step: 3}}")
    assert (issue.message, issue.hint) == (
        "sft.trainer.warmup_step: SFTConfig has no such key.",
        "Did you mean warmup_steps?",
    )
    (other,) = faults_of("sft: {trainer: {center_rewards_coefficient: 0.1}}")  # of another trainer
    assert "SFTConfig has no such key" in other.message
    load(write("reward: {trainer: {center_rewards_coefficient: 0.1, weight_decay: 0.1}}"), stages=())


@pytest.mark.parametrize(
    ("stage", "value", "says"),
    [
        ("sft", "{weight_decay: '0.1'}", "found 0.1, expected a number. Write it without quotes."),
        ("sft", "{weight_decay: true}", "found True, expected a number."),
        ("pretrain", "{adam_beta1: .nan}", "found nan, expected a number."),
        ("reward", "{seed_everything: 1}", "RewardConfig has no such key."),
        ("reward", "{dataloader_num_workers: 1.5}", "found 1.5, expected a whole number."),
        ("reward", "{center_rewards_coefficient: small}", "found small, expected a number or null."),
        ("sft", "{gradient_checkpointing: 'no'}", "found no, expected true or false."),
        ("sft", "{lr_scheduler_type: cosien}", "found cosien, which is none of its words. Did you mean cosine?"),
        ("sft", "{optim: zzz}", "found zzz, which is none of its words. It takes adamw_torch, "),
        ("ppo", "{optim: adamw_trch}", "Did you mean adamw_torch?"),
        ("ppo", "{max_grad_norm: [1]}", "found [1], expected a number."),
    ],
)
def test_a_trainer_value_that_its_field_does_not_take_is_told(
    faults_of: FaultsOf, stage: str, value: str, says: str
) -> None:
    (issue,) = faults_of(f"{stage}: {{trainer: {value}}}")
    assert says in str(issue)


def test_trainer_values_of_every_kind_are_taken(write: Write) -> None:
    values = "{weight_decay: 1, warmup_steps: 0.1, optim: sgd, lr_scheduler_kwargs: {num_cycles: 1}, report_to: [none]}"
    load(write(f"sft: {{trainer: {values}}}\nppo: {{trainer: {values}}}"), stages=())
    load(write("reward: {trainer: {eval_strategy: 'no', run_name: null, lr_scheduler_kwargs: '{}'}}"), stages=())


def test_a_trainer_key_that_would_have_no_effect_is_refused(faults_of: FaultsOf) -> None:
    (issue,) = faults_of("sft: {trainer: {packing: true}}")
    assert "has no effect" in issue.message


def test_ppo_takes_only_the_trainer_keys_that_its_loop_acts_on(write: Write, faults_of: FaultsOf) -> None:
    told = faults_of("ppo: {trainer: {output_dir: x, neftune_noise_alpha: 5, warmup_stepz: 1}}")
    assert [issue.message for issue in told] == [
        f"ppo.trainer.{key}: PPO's loop has no use for this key."
        for key in ("output_dir", "neftune_noise_alpha", "warmup_stepz")
    ]
    assert "weight_decay" in told[0].hint
    assert told[2].hint == "Did you mean warmup_steps?"
    load(write("ppo: {trainer: {weight_decay: 0.1, report_to: wandb}}"), stages=())


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward"])
def test_the_keys_read_from_source_are_the_configs_fields(stage: str) -> None:
    import dataclasses

    from trl import RewardConfig, SFTConfig

    config = RewardConfig if stage == "reward" else SFTConfig
    fields = {field.name for field in dataclasses.fields(config) if field.init}
    assert set(known_keys(stage)) >= fields
    assert len(set(known_keys(stage)) - fields) <= 5  # class-level annotations that are no fields


def test_whole_model_training_excludes_frozen_weights_and_adapters(faults_of: FaultsOf) -> None:
    told = faults_of("name: x\nbase: {model: a/b, quantize: nf4}\nadapter: null\nexport: {format: adapter}", bare=True)
    assert [issue.message.partition(":")[0] for issue in told] == ["base.quantize", "export.format"]


@pytest.mark.parametrize(
    ("stage", "kind"), [("pretrain", "pretrain"), ("sft", "sft"), ("reward", "preferences"), ("ppo", "prompts")]
)
def test_data_that_a_stage_lacks_is_told_for_the_stages_that_are_to_run(
    write: Write, faults_of: FaultsOf, stage: str, kind: str
) -> None:
    (issue,) = faults_of(f"{stage}:", stages=None)
    assert str(issue).startswith(f"r.yaml:3:1  data.{kind}: is missing, and {stage} needs it.")
    (named,) = faults_of("data:", stages=(stage,))
    assert named.message == issue.message
    load(write(f"{stage}:"), stages=("export",))  # another stage does not need it


def test_a_chat_template_must_be_a_file(faults_of: FaultsOf) -> None:
    (issue,) = faults_of("name: x\nbase: {model: a/b, chat_template: t.jinja}", bare=True)
    assert issue.location == "r.yaml:2:20"
    assert "no file t.jinja" in issue.message


def test_the_base_given_as_a_path_must_be_a_folder(faults_of: FaultsOf) -> None:
    (issue,) = faults_of("name: x\nbase: {model: ./gone}", bare=True)
    assert "there is no folder gone" in issue.message


def test_what_has_too_many_parts_for_a_hub_id_is_a_folder(faults_of: FaultsOf) -> None:
    (issue,) = faults_of("name: x\nbase: {model: runs/demo/pretrain}", bare=True)
    assert issue.message == "base.model: there is no folder runs/demo/pretrain."


def test_a_path_outside_the_working_folder_is_shown_whole(faults_of: FaultsOf, tmp_path: Path) -> None:
    (tmp_path.parent / "models").mkdir(exist_ok=True)
    (issue,) = faults_of(f"name: x\nbase: {{model: {tmp_path.parent}/modls/small}}", bare=True)
    assert issue.message == f"base.model: there is no folder {tmp_path.parent}/modls/small."
    assert issue.hint == f"Did you mean {tmp_path.parent}/models?"


def test_functions_are_looked_for_without_running_their_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def score(): ...\nraise SystemExit\n")
    load(write("eval: {python: ['f.py:score']}"), stages=())


def test_what_a_function_file_imports_and_is_not_installed_is_told_once(faults_of: FaultsOf, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("import not_there.deep\ndef score(): ...\ndef other(): ...\n")
    (issue,) = faults_of("ppo: {reward: [{python: 'f.py:score'}]}\neval: {python: ['f.py:other']}")
    assert (issue.location, issue.message) == (
        "r.yaml:3:17",
        "ppo.reward.0.python: f.py imports not_there, which is not installed.",
    )


IMPORTS_THAT_MAY_FAIL = """
import beside, package.inner, json, os.path, torch
from . import anything
try:
    import not_there
except ImportError:
    not_there = None
def score():
    import not_there
"""


def test_imports_that_are_there_or_need_not_be_are_no_fault(write: Write, tmp_path: Path) -> None:
    (tmp_path / "beside.py").touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "f.py").write_text(IMPORTS_THAT_MAY_FAIL)
    load(write("eval: {python: ['f.py:score']}"), stages=())


def test_stages_are_named_in_the_order_of_the_chain(write: Write) -> None:
    assert named_stages(load(write("export:\nppo:\nsft:\n"), stages=())) == ["sft", "ppo", "export"]
