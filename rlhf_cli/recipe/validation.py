"""Faults that span several fields, or reach outside the recipe: told before torch, all at once.

What a field alone can tell stands in `schema.py`; whether a run that a recipe names exists is told when the stage's
inputs are resolved.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from rlhf_cli.recipe import trainer_options, user_functions
from rlhf_cli.recipe.schema import STAGES, Recipe, Rule, Section, Source, is_run_reference
from rlhf_cli.recipe.yaml_document import Key, show
from rlhf_cli.redaction import SECRET_PARAMETER, redact

ROWS = {"pretrain": "pretrain", "sft": "sft", "reward": "preferences", "ppo": "prompts"}  # stage: its data
TRAINED = ("pretrain", "sft", "reward")
REWARDS = ("run", "model", "python", "http", "rule")  # a reward source is one of these


class ValidationIssue(NamedTuple):
    """A issue and the key that it belongs to."""

    key: Key
    message: str
    hint: str


def named_stages(recipe: Recipe) -> list[str]:
    """The stages that the recipe has a section for, in the order of the chain."""
    return [stage for stage in STAGES if stage in recipe.model_fields_set]


def problems(recipe: Recipe, stages: Sequence[str]) -> Iterator[ValidationIssue]:
    """Every cross-field issue of `recipe`, and what the `stages` about to run lack."""
    yield from _secrets(recipe.model_dump(), ())
    yield from _training(recipe)
    yield from _trainer(recipe)
    yield from _missing_data(recipe, stages)
    yield from _data(recipe)
    yield from _architecture(recipe)
    yield from _ppo(recipe)
    yield from _eval(recipe)
    yield from _functions(recipe)
    yield from _whole_model(recipe)
    yield from _launch(recipe)
    yield from _models(recipe)


def _secrets(value: Any, key: Key) -> Iterator[ValidationIssue]:
    """What must not stand in a recipe, for its run keeps a copy. It is not repeated; of a reward's URL `_url` tells."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _secrets(item, (*key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):  # a lone data source is a list of one, whose index stands nowhere
            yield from _secrets(item, key if key[0] == "data" and len(value) == 1 else (*key, index))
    elif isinstance(value, str) and redact(value) != value and key[-1] != "http":
        message = f"{'.'.join(map(str, key))}: holds a password or a token, which the run's recipe.yaml would show."
        yield ValidationIssue(key, message, "Take it out; tokens belong into the environment, as HF_TOKEN.")


def _trainer(recipe: Recipe) -> Iterator[ValidationIssue]:
    for stage in (*TRAINED, "ppo"):
        for issue in trainer_options.issues(stage, getattr(recipe, stage).trainer):
            key: Key = (stage, "trainer", issue.name)
            yield ValidationIssue(key, f"{stage}.trainer.{issue.name}: {issue.message}", issue.hint)


def _training(recipe: Recipe) -> Iterator[ValidationIssue]:
    for stage in TRAINED:
        section = getattr(recipe, stage)
        if section.epochs is not None and section.max_steps is not None:
            yield ValidationIssue(
                (stage, "max_steps"), f"{stage}: epochs and max_steps are both set.", "Keep one of them."
            )
        together = recipe.launch.processes if stage in recipe.model_fields_set else 1
        if section.batch_size % (section.micro_batch_size * together):
            each = f" × {together} processes" if together > 1 else ""
            yield ValidationIssue(
                (stage, "batch_size"),
                f"{stage}.batch_size: {section.batch_size} is not a multiple of micro_batch_size "
                f"{section.micro_batch_size}{each}.",
                f"Set {stage}.micro_batch_size to a divisor of {section.batch_size // together}."
                if section.batch_size % together == 0
                else f"Set {stage}.batch_size to a multiple of {together}.",
            )


def _missing_data(recipe: Recipe, stages: Sequence[str]) -> Iterator[ValidationIssue]:
    for stage in stages:
        kind = ROWS.get(stage)
        if kind and getattr(recipe.data, kind) is None:
            # Told where the data are listed, or else at the stage that asks for them.
            key: Key = ("data", kind) if "data" in recipe.model_fields_set else (stage,)
            yield ValidationIssue(
                key, f"data.{kind}: is missing, and {stage} needs it.", f"Add data.{kind}: {{path: …}}."
            )


def _data(recipe: Recipe) -> Iterator[ValidationIssue]:
    for kind in ("pretrain", "sft", "preferences", "prompts"):
        sources: list[Source] = getattr(recipe.data, kind) or []
        for index, source in enumerate(sources):
            yield from _source(source, ("data", kind, index) if len(sources) > 1 else ("data", kind))


def _source(source: Source, key: Key) -> Iterator[ValidationIssue]:
    dotted = ".".join(map(str, key))
    yield from _one_of(source, ("path", "hub", "run"), key)
    if source.eval_split is not None and source.eval_fraction is not None:
        yield ValidationIssue(
            (*key, "eval_split"), f"{dotted}: eval_split and eval_fraction are both set.", "Keep one of them."
        )
    if source.path is not None and not Path(source.path).exists():
        yield ValidationIssue(
            (*key, "path"), f"{dotted}.path: there is no {show(Path(source.path))}.", _near(Path(source.path))
        )
    for name in ("config", "revision"):
        if getattr(source, name) is not None and source.hub is None:
            yield ValidationIssue(
                (*key, name), f"{dotted}.{name}: belongs to a hub data set.", f"Remove {name}, or set hub."
            )


def _near(path: Path) -> str:
    """What is there that the first missing part of `path` may stand for."""
    missing = next(p for p in [*reversed(path.parents), path] if not p.exists())
    names = [p.name for p in missing.parent.iterdir()] if missing.parent.is_dir() else []
    near = difflib.get_close_matches(missing.name, names, n=1)
    if not near:
        return "A relative path begins at its recipe's own folder, in --set at the working folder."
    return f"Did you mean {near[0] if missing == path else show(missing.with_name(near[0]))}?"


def _architecture(recipe: Recipe) -> Iterator[ValidationIssue]:
    shape, key = recipe.pretrain.architecture, ("pretrain", "architecture")
    if shape.hidden_size % (2 * shape.heads):
        message = f"hidden_size {shape.hidden_size} does not give each of {shape.heads} heads an even width."
        hint = "Rotary positions pair dimensions: set hidden_size to a multiple of 2 × heads."
        yield ValidationIssue((*key, "heads"), f"pretrain.architecture: {message}", hint)
    if shape.heads % shape.kv_heads:
        message = f"{shape.heads} heads cannot share {shape.kv_heads} kv_heads."
        yield ValidationIssue(
            (*key, "kv_heads"), f"pretrain.architecture: {message}", "Set kv_heads to a divisor of heads."
        )
    if recipe.pretrain.start == "scratch" and recipe.pretrain.max_length > shape.context:
        message = (
            f"pretrain.max_length: {recipe.pretrain.max_length} is more than architecture.context {shape.context}."
        )
        yield ValidationIssue(("pretrain", "max_length"), message, "Lower max_length, or raise context.")


def _ppo(recipe: Recipe) -> Iterator[ValidationIssue]:
    ppo = recipe.ppo
    for index, term in enumerate(ppo.reward):
        key: Key = ("ppo", "reward", index)
        yield from _one_of(term, REWARDS, key)
        for name, owner in (("revision", "model"), ("timeout", "http"), ("batch_size", "http"), ("retries", "http")):
            if getattr(term, name) is not None and getattr(term, owner) is None:
                message = f"ppo.reward.{index}.{name}: belongs to {owner}."
                yield ValidationIssue((*key, name), message, f"Remove {name}, or set {owner}.")
        if term.http is not None:
            yield from _url(term.http, (*key, "http"))
        if term.rule is not None:
            yield from _rule(term.rule, (*key, "rule"))
    if ppo.rollout_batch_size % ppo.minibatches:
        message = f"ppo.minibatches: {ppo.minibatches} does not divide rollout_batch_size {ppo.rollout_batch_size}."
        yield ValidationIssue(("ppo", "minibatches"), message, "Set it to a divisor.")
    if ppo.kl.apply_to == "loss" and ppo.kl.estimator == "k1":
        message = "ppo.kl.estimator: k1 has no gradient on average, so that as a loss it holds nothing back."
        yield ValidationIssue(("ppo", "kl", "apply_to"), message, "Set estimator to k2 or k3, or apply_to to reward.")
    if ppo.ptx_coef and recipe.data.sft is None:
        message = "ppo.ptx_coef: mixes in demonstrations, and data.sft is missing."
        yield ValidationIssue(("ppo", "ptx_coef"), message, "Add data.sft: {path: …}, or leave ptx_coef out.")
    together = recipe.launch.processes
    if ppo.rollout_batch_size * ppo.samples_per_prompt % together:
        message = (
            f"ppo.rollout_batch_size: {ppo.rollout_batch_size} prompts are not a multiple of {together} processes."
        )
        yield ValidationIssue(("ppo", "rollout_batch_size"), message, f"Set it to a multiple of {together}.")
    if ppo.critic.warmup_iterations >= ppo.iterations:
        message = (
            f"ppo.critic.warmup_iterations: {ppo.critic.warmup_iterations} leaves none of {ppo.iterations} iterations"
        )
        yield ValidationIssue(("ppo", "critic", "warmup_iterations"), f"{message} to the policy.", "Lower it.")


def _one_of(section: Section, names: Sequence[str], key: Key) -> Iterator[ValidationIssue]:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        message = f"{'.'.join(map(str, key))}: needs exactly one of {', '.join(names[:-1])} and {names[-1]}"
        found = f"found {' and '.join(given)}" if given else "none is set"
        yield ValidationIssue(key, f"{message}; {found}.", "Keep one of them." if given else "Set one of them.")


def _url(url: str, key: Key) -> Iterator[ValidationIssue]:
    """The URL itself is not told: where it is wrong, a password may stand anywhere in it."""
    dotted = ".".join(map(str, key))
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        yield ValidationIssue(key, f"{dotted}: is no URL: {type(error).__name__}.", "Write https://host:port/path.")
        return
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if "@" in parts.netloc or redact(url) != url or any(map(SECRET_PARAMETER.search, names)):
        message = f"{dotted}: holds a password or a key, which the run's recipe.yaml and its logs would show."
        yield ValidationIssue(
            key, message, "Take it out; RLHF_REWARD_TOKEN in the environment is sent as a Bearer header."
        )
    elif parts.scheme not in ("http", "https") or not host or not url.isascii() or re.search(r"[\s\x00-\x20\x7f]", url):
        yield ValidationIssue(key, f"{dotted}: is no URL of http or https.", "Write https://host:port/path.")


def _rule(rule: Rule, key: Key) -> Iterator[ValidationIssue]:
    dotted = ".".join(map(str, key))
    yield from _one_of(rule, ("length", "pattern", "forbidden"), key)
    if rule.length is not None:
        low, high = rule.length.min, rule.length.max
        if high is None and not low:
            yield ValidationIssue(
                (*key, "length"), f"{dotted}.length: keeps every answer.", "Set min, max or both, in tokens."
            )
        elif high is not None and high < low:
            message = f"{dotted}.length: no answer has at least {low} tokens and at most {high}."
            yield ValidationIssue((*key, "length"), message, "Set min below max.")
    if rule.pattern is not None:
        try:
            re.compile(rule.pattern)
        except re.error as error:
            yield ValidationIssue(
                (*key, "pattern"), f"{dotted}.pattern: is no regular expression: {error}.", "See Python's re."
            )
    for index, word in enumerate(rule.forbidden or []):
        if not word.strip():
            yield ValidationIssue((*key, "forbidden", index), f"{dotted}.forbidden.{index}: is empty.", "Write a word.")


def _eval(recipe: Recipe) -> Iterator[ValidationIssue]:
    for index, gate in enumerate(recipe.eval.gates):
        if gate.min is None and gate.max is None:
            yield ValidationIssue(
                ("eval", "gates", index), f"eval.gates.{index}: needs min or max.", "Add `min:` or `max:`."
            )


def _functions(recipe: Recipe) -> Iterator[ValidationIssue]:
    """Each `file.py:function`; what is wrong with a file is told once."""
    specs: list[tuple[Key, str]] = [
        (("ppo", "reward", index, "python"), term.python)
        for index, term in enumerate(recipe.ppo.reward)
        if term.python is not None
    ]
    specs += [(("eval", "python", index), judge) for index, judge in enumerate(recipe.eval.python)]
    told: set[str] = set()
    for key, spec in specs:
        for message, hint in _function(spec):
            if message not in told:
                yield ValidationIssue(key, f"{'.'.join(map(str, key))}: {message}", hint)
            told.add(message)


def _function(spec: str) -> Iterator[tuple[str, str]]:
    """`file.py:function` must name a file that is sound and holds the function; the file is not run."""
    file, colon, _ = spec.rpartition(":")
    path = Path(file)
    if not colon or path.suffix != ".py":
        yield f"found {spec}, expected file.py:function.", "Write rewards.py:brevity."
    elif not path.is_file():
        yield f"there is no file {show(path)}.", _near(path)
    else:
        yield from user_functions.issues(spec)


def _whole_model(recipe: Recipe) -> Iterator[ValidationIssue]:
    """What `adapter: null` excludes."""
    if recipe.adapter is not None:
        return
    if recipe.base.quantize != "none":
        message = f"base.quantize: {recipe.base.quantize} weights are frozen, and adapter: null would train them."
        yield ValidationIssue(("base", "quantize"), message, "Set quantize: none, or give the recipe an adapter.")
    if recipe.export.format == "adapter":
        message = "export.format: there is no adapter to export, for the recipe says adapter: null."
        yield ValidationIssue(("export", "format"), message, "Set form: merged.")


def _launch(recipe: Recipe) -> Iterator[ValidationIssue]:
    """What splitting a base (`strategy: fsdp`) excludes."""
    if recipe.launch.strategy == "ddp":
        return
    key: Key = ("launch", "strategy")
    if recipe.adapter is None:
        message = "launch.strategy: fsdp splits a frozen base, and adapter: null trains it."
        yield ValidationIssue(key, message, "Set strategy: ddp, or give the recipe an adapter.")
    if recipe.base.quantize != "none":
        message = f"launch.strategy: fsdp does not split {recipe.base.quantize} weights."
        yield ValidationIssue(key, message, "Set strategy: ddp, or base.quantize: none.")
    answers = recipe.ppo.rollout_batch_size * recipe.ppo.samples_per_prompt
    rows, together = answers // recipe.ppo.minibatches, recipe.launch.processes
    if "ppo" in recipe.model_fields_set and rows % together:
        message = f"ppo.minibatches: with fsdp, {rows} rows of a minibatch are not a multiple of {together} processes."
        yield ValidationIssue(("ppo", "minibatches"), message, f"Choose it so that {answers} / minibatches is one.")


def _reward_model(text: str, key: Key) -> Iterator[ValidationIssue]:
    """A hub id, or the folder of a whole model; what is a run goes under `run`."""
    dotted = ".".join(map(str, key))
    folder = Path(text)
    if is_run_reference(text) or (folder.is_absolute() and (folder / "manifest.json").exists()):
        yield ValidationIssue(key, f"{dotted}: {show(folder)} is a run.", "Write {run: …} for it.")
    elif folder.is_absolute() and not folder.is_dir():
        yield ValidationIssue(key, f"{dotted}: there is no folder {show(folder)}.", _near(folder))


def _models(recipe: Recipe) -> Iterator[ValidationIssue]:
    """A model given as a path must be a folder; a template must be a file."""
    models: list[tuple[Key, Any]] = [(("base", "model"), recipe.base.model)]
    models += [(("pretrain", "start"), recipe.pretrain.start)]
    runs: list[tuple[Key, Any]] = [
        ((stage, "start"), getattr(recipe, stage).start) for stage in ("sft", "reward", "ppo")
    ]
    runs += [(("ppo", "reward", index, "run"), term.run) for index, term in enumerate(recipe.ppo.reward)]
    runs += [(("eval", name), getattr(recipe.eval, name)) for name in ("candidate", "baseline", "reward")]
    runs += [(("export", "of"), recipe.export.of)]
    for index, term in enumerate(recipe.ppo.reward):
        if term.model is not None:
            yield from _reward_model(term.model, ("ppo", "reward", index, "model"))
    for key, text in models + runs:
        dotted = ".".join(map(str, key))
        if text is None or is_run_reference(text):
            continue
        if text.startswith("/"):
            if not Path(text).is_dir():
                yield ValidationIssue(key, f"{dotted}: there is no folder {show(Path(text))}.", _near(Path(text)))
        elif (key, text) in runs and (text != "base" or key[0] == "export" or "reward" in key[1:]):
            near = difflib.get_close_matches(text.partition("@")[0], (*STAGES, "base"), n=1)
            hint = f"Did you mean {near[0]}?" if near else "Write sft, sft@v0002, name/sft@v0002, or a folder's path."
            yield ValidationIssue(key, f"{dotted}: {text} is neither a run nor a folder.", hint)
    template = recipe.base.chat_template
    if template != "auto" and not Path(template).is_file():
        yield ValidationIssue(
            ("base", "chat_template"), f"base.chat_template: no file {show(Path(template))}.", "auto, or a .jinja file."
        )
