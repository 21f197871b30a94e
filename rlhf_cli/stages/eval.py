"""Compare the candidate with the baseline on rows that training did not see.

Held-out demonstrations give the loss, held-out preferences the reward model's accuracy, and held-out prompts the
completions of both sides, with the same decoding settings and the same random draws. One base model is in memory;
candidate, baseline and reward model are roles on it. The registry of metrics decides what is computed. A failed gate
does not fail the stage: the run is completed first, and then the command exits with code 8.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_cli.ai_feedback.agreement import describe
from rlhf_cli.ai_feedback.judge import Judge, Pair, consistency
from rlhf_cli.data import chat_template, held_out
from rlhf_cli.data.held_out import HeldOut
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow, Text
from rlhf_cli.errors import DataError, DivergedError, ModelError, RecipeError
from rlhf_cli.evaluation import gates, report
from rlhf_cli.evaluation.measurements import (
    CompletionLoss,
    JudgedPairs,
    PairedCompletions,
    PreferenceMargins,
    ScoredCompletions,
)
from rlhf_cli.evaluation.metric_types import BASELINE_SUFFIX, Metric
from rlhf_cli.evaluation.metrics import (
    compute,
    function_name,
    is_optional,
    metric_names,
    metrics_of,
    optional_names,
    people_names,
)
from rlhf_cli.evaluation.slices import reported_slices, slices_of
from rlhf_cli.evaluation.verdict import Models, Verdict, decide
from rlhf_cli.formatting import format_count
from rlhf_cli.inference import generation, scoring
from rlhf_cli.inference.stopping import StoppingRules
from rlhf_cli.models import loading
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.pipeline.inputs import JUDGE_CONSTITUTION, Input, find_ceiling
from rlhf_cli.pipeline.judge import MeasuredJudge, judge_of_stage
from rlhf_cli.pipeline.references import entry_of_model
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.rewards.base import Completions, as_completion
from rlhf_cli.rewards.ensemble import RewardEnsemble, find_ensemble, score_sequences
from rlhf_cli.rewards.python import PythonScorer
from rlhf_cli.rewards.tokenizer_check import check_tokenizer
from rlhf_cli.runs import lineage
from rlhf_cli.runs.manifest import digest
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training import length_checks
from rlhf_cli.training.prepared_data import load_tokenizer

logger = logging.getLogger(__name__)

CANDIDATE, BASELINE, REWARD = "candidate", "baseline", "reward"  # roles of the model, and fields of the section
MIN_PROMPTS_FOR_INTERVALS = 30  # with fewer, intervals are too wide to decide anything


class EvalContext(NamedTuple):
    """What every measurement needs."""

    stage: ResolvedStage
    run: Run
    model: MultiAdapterModel
    tokenizer: PreTrainedTokenizerBase
    metrics: Sequence[Metric]
    scorers: Mapping[str, PythonScorer]  # the functions of eval.python, by name
    reward: RewardEnsemble | None  # the members of eval.reward, combined by their mean
    judge: MeasuredJudge | None  # the judge of eval.judge
    sizes: dict[str, int]  # the rows that are measured, by dataset
    warnings: list[str]  # reasons to distrust the metrics that the rows give

    @property
    def sides(self) -> tuple[str, ...]:
        """The roles that are compared; only the candidate if the recipe has no baseline."""
        return (CANDIDATE,) if self.stage.section.baseline is None else (CANDIDATE, BASELINE)

    @property
    def max_new_tokens(self) -> int:
        """The limit on a completion's tokens."""
        tokens: int = self.stage.section.max_new_tokens or self.stage.recipe.ppo.max_new_tokens
        return tokens

    @property
    def pad_id(self) -> int:
        """The id to pad with."""
        return int(self.tokenizer.pad_token_id)


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Compute the recipe's metrics, and write report.json and report.md."""
    names = metric_names(stage.recipe)
    if not names:
        message = "no dataset to evaluate on; expected data.sft, data.prompts, or data.preferences with eval.reward."
        hint = "Add data.prompts or data.sft."
        raise RecipeError("eval.nothing-to-evaluate", message, location="data", hint=hint)
    scorers = {function_name(spec): PythonScorer(spec, allow_none=False) for spec in stage.section.python}
    rows = held_out.load(stage.recipe, stage.dataset_path, smoke=stage.smoke)
    slices = reported_slices([slices_of(row.extra) for row in rows.preferences])
    optional = optional_names(stage.recipe, slices)
    # So few rows as those of a smoke run make no slice.
    own_gates = [
        gate
        for gate in stage.section.gates
        if not (stage.smoke and is_optional(gate.metric, stage.recipe) and gate.metric not in optional)
    ]
    gates.check_gate_metrics(own_gates, [*names, *optional])
    if rows.prompts:
        for scorer in scorers.values():
            scorer.check(rows.prompts)
    judge = _load_judge(stage) if rows.prompts and stage.section.judge else None
    context = _load_models(stage, run, rows, scorers, judge)
    parts: list[Callable[[], dict[str, float]]] = []
    if rows.sft:
        parts.append(lambda: _evaluate_demonstrations(context, rows.sft))
    if rows.preferences:
        parts.append(lambda: _evaluate_preferences(context, rows.preferences))
    if rows.prompts:
        parts.append(lambda: _evaluate_completions(context, rows.prompts))
    run.begin(len(parts), "part")
    values: dict[str, float] = {}
    for step, part in enumerate(parts, start=1):
        found = part()
        _check_finite(found)
        run.log(step, found)
        values |= found
    metrics = {name: values[name] for name in names}
    metrics |= {name: values[name] for name in optional if name in values}
    not_judged = dict.fromkeys(people_names(stage.recipe), math.nan)  # such a gate fails until people have judged
    gate_verdicts = gates.evaluate_gates(own_gates, {**not_judged, **metrics})
    for gate_verdict in gate_verdicts:
        logger.info(gate_verdict.text)
    verdict = decide(metrics, _compared_models(stage, judge))
    # Random weights would cause most warnings of a smoke run.
    verdict = verdict._replace(warnings=[] if stage.smoke else [*verdict.warnings, *context.warnings])
    _write_report(stage, run, context.sizes, metrics, verdict, gate_verdicts)
    return StageMetrics(metrics, tuple(one.as_json() for one in gate_verdicts), verdict.as_json())


def _compared_models(stage: ResolvedStage, judge: MeasuredJudge | None) -> Models:
    """Return the models, functions and judges by name, and those that the candidate was trained to maximize."""
    inputs = {item.role: item for item in stage.inputs}
    optimized = _optimized_rewards(inputs[CANDIDATE]) if CANDIDATE in inputs else []
    contents = {item["sha256"] for item in optimized if item["kind"] != "file"}
    functions = {(item["sha256"], function_name(item["ref"])) for item in optimized if item["kind"] == "file"}
    names = {role: _name(inputs.get(role)) for role in (CANDIDATE, BASELINE, REWARD)}
    if REWARD in inputs and inputs[REWARD].version is not None and "@" not in names[REWARD]:
        names[REWARD] += f"@{inputs[REWARD].version}"
    maximized = []
    if REWARD in inputs and inputs[REWARD].sha256 in contents:
        maximized.append(names[REWARD])
    for index, spec in enumerate(stage.section.python):
        if (inputs[f"{stage.spec.section}.python.{index}"].sha256, function_name(spec)) in functions:
            maximized.append(function_name(spec))
    judges = {"people.win_rate": "people"} if stage.section.blind else {}
    if judge is not None:
        judges["judge.win_rate"] = f"the judge {judge.judge.label} ({describe(judge.agreement)})"
        if _was_trained_with_judge(inputs):
            maximized.append(judges["judge.win_rate"])
    return Models(
        candidate=names[CANDIDATE],
        baseline=None if stage.section.baseline is None else names[BASELINE],
        reward=None if stage.section.reward is None else names[REWARD],
        functions=[function_name(spec) for spec in stage.section.python],
        optimized=maximized,
        judges=judges,
    )


def _optimized_rewards(candidate: Input) -> list[Mapping[str, Any]]:
    """Return the reward sources that the candidate was trained to maximize; none if it is not of a run."""
    return lineage.optimized_rewards(entry_of_model(Path(candidate.path))) if candidate.kind != "hub" else []


def _was_trained_with_judge(inputs: Mapping[str, Input]) -> bool:
    """Return whether a judge with the same constitution was a reward of the candidate."""
    if CANDIDATE not in inputs or inputs[CANDIDATE].kind == "hub":
        return False
    entry = entry_of_model(Path(inputs[CANDIDATE].path))
    constitution = inputs[JUDGE_CONSTITUTION].sha256
    return any(
        item["role"] == JUDGE_CONSTITUTION and item["sha256"] == constitution
        for run in (*lineage.ancestor_runs(entry), entry)
        for item in lineage.inputs(run)
    )


def _name(item: Input | None) -> str:
    """Return a model's name for people: as in the recipe, or the last part of its path; `base` for the bare base."""
    if item is None:
        return "base"
    return "/".join(Path(item.ref).parts[-2:]) if Path(item.ref).is_absolute() else item.ref


def _load_judge(stage: ResolvedStage) -> MeasuredJudge:
    """Return the judge with its weights. Raise DataError if its agreement with people is below `min_agreement`."""
    measured = judge_of_stage(stage)
    measured.judge.answerer.load(smoke=stage.smoke)
    return measured


def _load_models(
    stage: ResolvedStage,
    run: Run,
    rows: HeldOut,
    scorers: Mapping[str, PythonScorer],
    judge: MeasuredJudge | None,
) -> EvalContext:
    tokenizer = load_tokenizer(stage)
    roles = {
        role: stage.model_path(role)
        for role in (CANDIDATE, BASELINE, REWARD)
        if getattr(stage.section, role) is not None
    }
    reward_model = roles.get(REWARD)
    reward: RewardEnsemble | None = None
    if reward_model is not None:
        reward = find_ensemble(REWARD, reward_model, "mean")
        roles |= reward.folders
        prompts = [*(row.prompt for row in rows.prompts), *(row.prompt for row in rows.preferences)]
        check_tokenizer(tokenizer, reward_model, prompts, location="eval.reward")
    recipe = stage.recipe
    model = MultiAdapterModel.load(recipe.base, recipe.adapter, stage.base_path, roles, smoke=stage.smoke)
    model.set_trainable([])
    if reward is not None and not set(reward.folders) <= set(model.heads):
        message = f"{stage.section.reward} is not a reward model; expected a run of the reward stage."
        hint = "Use a run of the reward stage, or null."
        raise ModelError("model.not-a-reward-model", message, location="eval.reward", hint=hint)
    return EvalContext(stage, run, model, tokenizer, metrics_of(recipe), scorers, reward, judge, {}, [])


def _evaluate_demonstrations(context: EvalContext, rows: Sequence[SftRow]) -> dict[str, float]:
    """Return the metrics of the loss on the completions, truncated as in sft."""
    prompts, completions = [], []
    limit = context.stage.recipe.sft.max_length
    for pair in chat_template.encode_pairs(context.tokenizer, [(row.prompt, row.completion) for row in rows]):
        start = len(pair.prompt_ids) or 1  # the first token of a row without a prompt cannot be predicted
        ids = (pair.prompt_ids + pair.completion_ids)[:limit]
        if len(ids) > start:
            prompts.append(ids[:start])
            completions.append(ids[start:])
    reason = f"the prompt fills sft.max_length ({format_count(limit, 'token')})"
    _record_rows(context, "demonstrations", len(prompts), len(rows), reason, "sft.max_length")
    values: dict[str, float] = {}
    for role in context.sides:
        nll = sum(float(-logprobs.sum()) for logprobs in _logprobs(context, role, prompts, completions, 1.0))
        loss = CompletionLoss(nll, tokens=sum(map(len, completions)))
        values |= compute(context.metrics, "demonstrations", loss, of_baseline=role == BASELINE)
    return values


def _evaluate_preferences(context: EvalContext, rows: Sequence[PreferenceRow]) -> dict[str, float]:
    """Return the metrics of the reward model's scores of chosen and rejected completions."""
    limit = context.stage.recipe.reward.max_length
    chosen = chat_template.encode_pairs(context.tokenizer, [(row.prompt, row.chosen) for row in rows])
    rejected = chat_template.encode_pairs(context.tokenizer, [(row.prompt, row.rejected) for row in rows])
    fitting = [
        (c, r, row.extra)
        for c, r, row in zip(chosen, rejected, rows, strict=True)
        if max(len(c.completion_ids), len(r.completion_ids)) + len(c.prompt_ids) <= limit
    ]
    pairs = [(c, r) for c, r, _ in fitting]
    reason = f"longer than reward.max_length ({format_count(limit, 'token')})"
    _record_rows(context, "preferences", len(pairs), len(rows), reason, "reward.max_length")
    scores = _reward_scores(context, [e.prompt_ids + e.completion_ids for pair in pairs for e in pair])
    margins = PreferenceMargins.from_rows(
        [c - r for c, r in zip(scores[::2], scores[1::2], strict=True)],
        [float(len(c.completion_ids) - len(r.completion_ids)) for c, r in pairs],
        [columns for _, _, columns in fitting],
        find_ceiling(context.stage.inputs),
    )
    return compute(context.metrics, "preferences", margins)


def _evaluate_completions(context: EvalContext, rows: Sequence[PromptRow]) -> dict[str, float]:
    """Return the metrics of both sides' completions, and of their differences, paired by prompt."""
    limit = context.stage.recipe.ppo.max_prompt_length
    encoded = chat_template.encode_prompts(context.tokenizer, [row.prompt for row in rows])
    kept = [(row, ids) for row, ids in zip(rows, encoded, strict=True) if len(ids) <= limit]
    reason = f"longer than ppo.max_prompt_length ({format_count(limit, 'token')})"
    _record_rows(context, "prompts", len(kept), len(rows), reason, "ppo.max_prompt_length")
    if len(kept) < MIN_PROMPTS_FOR_INTERVALS and not context.stage.smoke:
        unreliable = f"confidence intervals are unreliable below {MIN_PROMPTS_FOR_INTERVALS}"
        context.warnings.append(f"only {format_count(len(kept), 'held-out prompt')}; {unreliable}")
    prompts, ids = [row for row, _ in kept], [ids for _, ids in kept]
    _check_positions(context, longest=max(map(len, ids)), limit=limit)
    candidate = _complete(context, CANDIDATE, prompts, ids)
    values = compute(context.metrics, "completions", candidate)
    sides = {CANDIDATE: candidate}
    if BASELINE in context.sides:
        baseline = sides[BASELINE] = _complete(context, BASELINE, prompts, ids)
        values |= compute(context.metrics, "completions", baseline, of_baseline=True)
        log_ratios = _log_ratios(context, ids, candidate.responses)
        judged = None if context.judge is None else _judge_completions(context, context.judge.judge, prompts, sides)
        people = _ask_people(context.stage, prompts, sides) if context.stage.section.blind else ()
        pair = PairedCompletions(candidate, baseline, log_ratios, context.stage.recipe.seed, judged, people)
        values |= compute(context.metrics, "comparison", pair)
    _write_samples(context.run, prompts, sides)
    return values


def _check_positions(context: EvalContext, *, longest: int, limit: int) -> None:
    """Check the lengths of prompts, in tokens, with completions against the base model's sizes; log warnings."""
    sizes = loading.read_model_sizes(context.stage.base_path, context.stage.recipe.base.revision)
    key, noun, new_tokens = "eval.max_new_tokens", "a prompt with its completion", context.max_new_tokens
    length_checks.check_rope_switch(sizes.rope_switch, longest + new_tokens, key, noun=noun)
    for warning in length_checks.check_positions(
        sizes.positions, longest + new_tokens, limit + new_tokens, key, noun=noun
    ):
        logger.warning(warning)


def _complete(context: EvalContext, role: str, prompts: Sequence[PromptRow], ids: list[list[int]]) -> ScoredCompletions:
    """Sample one completion per prompt, and score it with the reward model and the Python functions."""
    stops = StoppingRules(context.tokenizer, context.stage.recipe.ppo.stop)
    torch.manual_seed(context.stage.recipe.seed)  # the same draws for both sides
    with context.model.use(role) as model:
        responses = generation.generate(
            model,
            ids,
            pad_id=context.pad_id,
            stops=stops,
            max_new_tokens=context.max_new_tokens,
            temperature=context.stage.section.temperature,
            batch_size=context.stage.section.batch_size,
        )
    texts = [stops.text(response) for response in responses]
    completions = [as_completion(row.prompt, text) for row, text in zip(prompts, texts, strict=True)]
    has_reward_model = context.stage.section.reward is not None
    sequences = [prompt + response for prompt, response in zip(ids, responses, strict=True)]
    return ScoredCompletions(
        responses,
        texts,
        reward_scores=_reward_scores(context, sequences) if has_reward_model else [],
        function_scores=_function_scores(context, Completions(prompts, ids, responses, completions)),
        truncated=[stops.is_truncated(response) for response in responses],
    )


def _judge_completions(
    context: EvalContext, judge: Judge, prompts: Sequence[PromptRow], sides: Mapping[str, ScoredCompletions]
) -> JudgedPairs:
    """Return the judge's verdicts on the completions of both sides.

    Raises:
        ModelError: All questions exceed the judge's context.
    """
    texts = (_as_completions(prompts, sides[role]) for role in (CANDIDATE, BASELINE))
    pairs = [Pair(row.prompt, *both) for row, *both in zip(prompts, *texts, strict=True)]
    outcomes, verdicts = judge.outcomes(pairs)
    known = [outcome for outcome in outcomes if outcome is not None]
    if not known:
        message = f"the questions about all {format_count(len(pairs), 'prompt')} exceed the context of the judge."
        hint = "Use a judge with a longer context."
        raise ModelError("eval.nothing-to-evaluate", message, location="eval.judge", hint=hint)
    if len(known) < len(pairs):
        context.warnings.append(f"judge: skipped {len(pairs) - len(known)} of {len(pairs)} prompts, too long for it")
    return JudgedPairs(known, consistency(verdicts))


def _as_completions(prompts: Sequence[PromptRow], side: ScoredCompletions) -> list[Text]:
    return [as_completion(row.prompt, text) for row, text in zip(prompts, side.texts, strict=True)]


def _ask_people(
    stage: ResolvedStage, prompts: Sequence[PromptRow], sides: Mapping[str, ScoredCompletions]
) -> list[float]:
    """Return the verdicts of people on this evaluation, after adding its pairs to the store if they are not there."""
    from rlhf_cli.feedback import blind
    from rlhf_cli.feedback.store import open_store

    key = _evaluation_key(stage)
    snapshot = stage.snapshot
    if snapshot is None or not any(item.extra.get(blind.MARK) == key for item in snapshot.items):
        texts = [_as_completions(prompts, sides[role]) for role in (CANDIDATE, BASELINE)]
        with open_store(stage.recipe) as store:
            added = store.add_items(blind.evaluation_items(key, prompts, *texts)).added
        hint = "judge them with `rlhf annotate serve`, then run the evaluation again"
        logger.info(f"added {format_count(added, 'pair')} for people to {store.location}; {hint}")
        return []
    found = blind.people_outcomes(snapshot, key)
    logger.info(f"people have judged {format_count(len(found), 'pair')} of this evaluation")
    return found


def _evaluation_key(stage: ResolvedStage) -> str:
    """Return a hash of the models, the prompts and how completions are sampled: what people's verdicts are about."""
    roles = ("base", CANDIDATE, BASELINE, "data.prompts")
    contents = [[item.role, item.sha256 or item.ref] for item in stage.inputs if item.role in roles]
    section, ppo = stage.section, stage.recipe.ppo
    limits = [section.samples, section.temperature, section.max_new_tokens, ppo.max_new_tokens, ppo.max_prompt_length]
    return digest([contents, limits, ppo.stop, stage.recipe.seed])[:16]


def _function_scores(context: EvalContext, completions: Completions) -> dict[str, list[float]]:
    """Return the scores of each Python function.

    Raises:
        RecipeError: A function failed. In PPO the policy may have caused that, but nothing is trained here.
        ModelError: A score is not finite.
    """
    scores: dict[str, list[float]] = {}
    for name, scorer in context.scorers.items():
        try:
            values = scorer.score(completions, max_tokens=0).values
        except DivergedError as error:
            raise RecipeError(error.issues) from error.__cause__
        scores[name] = [value for value in values if value is not None]
    _check_finite({name: sum(values) for name, values in scores.items()})
    return scores


def _reward_scores(context: EvalContext, sequences: list[list[int]]) -> list[float]:
    assert context.reward is not None
    max_tokens = context.stage.recipe.ppo.micro_batch_tokens
    found = score_sequences(context.model, context.reward, sequences, pad_id=context.pad_id, max_tokens=max_tokens)
    scores: list[float] = found.combined.tolist()
    _check_finite({"the reward model's score": sum(scores)})
    return scores


def _log_ratios(context: EvalContext, prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
    """Return log p_candidate - log p_baseline of each response, at the temperature that it was sampled with."""
    temperature = context.stage.section.temperature
    candidate = _logprobs(context, CANDIDATE, prompts, responses, temperature)
    baseline = _logprobs(context, BASELINE, prompts, responses, temperature)
    return [float((p - q).sum()) for p, q in zip(candidate, baseline, strict=True)]


def _logprobs(
    context: EvalContext, role: str, prompts: list[list[int]], responses: list[list[int]], temperature: float
) -> list[torch.Tensor]:
    return scoring.token_logprobs(
        context.model,
        role,
        prompts,
        responses,
        pad_id=context.pad_id,
        temperature=temperature,
        max_tokens=context.stage.recipe.ppo.micro_batch_tokens,
    )


def _record_rows(context: EvalContext, noun: str, kept: int, rows: int, reason: str, key: str) -> None:
    """Record how many rows are measured, with a warning if some were dropped. Raise DataError if all were."""
    if not kept:
        message = f"no held-out {noun} left to evaluate on; dropped all {rows}: {reason}."
        raise DataError("data.no-usable-rows", message, location=key, hint=f"Raise {key}.")
    if kept < rows:
        context.warnings.append(f"dropped {rows - kept} of {rows} held-out {noun}: {reason}")
    context.sizes[noun] = kept


def _check_finite(values: Mapping[str, float]) -> None:
    """Raise ModelError unless all values are finite. A sum is finite only if each of its terms is."""
    non_finite = [name for name, value in values.items() if not math.isfinite(value)]
    if non_finite:
        message = f"not a finite number: {', '.join(non_finite)}."
        hint = "Check the functions in eval.python, and whether the model diverged."
        raise ModelError("eval.non-finite", message, location="eval", hint=hint)


def _write_samples(run: Run, prompts: Sequence[PromptRow], sides: Mapping[str, ScoredCompletions]) -> None:
    """Write one line per prompt with the completions and scores of each side."""
    for index, row in enumerate(prompts):
        line: dict[str, object] = {"prompt": row.prompt}
        line |= {role: side.texts[index] for role, side in sides.items()}
        line |= {f"{role}_score": side.reward_scores[index] for role, side in sides.items() if side.reward_scores}
        for role, side in sides.items():
            suffix = BASELINE_SUFFIX if role == BASELINE else ""
            line |= {f"{name}{suffix}": scores[index] for name, scores in side.function_scores.items()}
        run.sample(line)


def _write_report(
    stage: ResolvedStage,
    run: Run,
    sizes: Mapping[str, int],
    metrics: Mapping[str, float],
    verdict: Verdict,
    gate_verdicts: Sequence[gates.GateVerdict],
) -> None:
    section = stage.section
    content = report.Report(section.candidate, section.baseline, section.reward, sizes, metrics, verdict, gate_verdicts)
    report.write(content, run.path)
