"""The `eval` stage: is `of` better than `against`, on rows that training did not see?

Held-out demonstrations give the loss, held-out preferences the reward model's accuracy, held-out prompts the answers
of both sides under the same decoding and the same seed. One base is in memory; `of`, `against` and the reward model
are roles on it. A gate that fails does not fail the stage: its figures are complete, and dispatch exits with 8 once
the run is. Left to later: judges other than the reward model and Python functions, slices, people.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from rlhf_cli.data import chat_template, held_out
from rlhf_cli.data.held_out import HeldOut
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow
from rlhf_cli.errors import DataError, DivergedError, ModelError, RecipeError
from rlhf_cli.evaluation import comparison, gates, report
from rlhf_cli.evaluation import metrics as metric_registry
from rlhf_cli.evaluation.comparison import Metrics, ScoredCompletions
from rlhf_cli.inference import generation, scoring
from rlhf_cli.inference.stopping import StoppingRules
from rlhf_cli.models import loading
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.rewards import build
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training import length_checks

logger = logging.getLogger(__name__)

CANDIDATE, BASELINE, REWARD = "candidate", "baseline", "reward"  # roles in the bank
FEW = 30  # items under which an interval is too wide to say much

Functions = Mapping[str, Callable[..., Any]]


class Bench(NamedTuple):
    """What every measurement works with."""

    recipe: Recipe
    run: Run
    bank: MultiAdapterModel
    tokenizer: Any

    @property
    def sides(self) -> tuple[str, ...]:
        """The roles that are compared; `of` alone where there is nothing to compare it with."""
        return (CANDIDATE,) if self.recipe.eval.baseline is None else (CANDIDATE, BASELINE)


def run(recipe: Recipe, run: Run) -> StageMetrics:
    """Measure, write report.json and report.md, and give the metrics back. What can fail early does."""
    promised = metric_registry.metric_names(recipe)
    if not promised:
        raise RecipeError("there is nothing to evaluate on.", location="data", hint="Set data.prompts, or data.sft.")
    gates.check_names(recipe.eval.gates, promised)
    functions = {metric_registry.function_name(spec): build.load_function(spec) for spec in recipe.eval.python}
    rows = held_out.load(recipe, run.find, smoke=run.smoke)
    bench = _bench(recipe, run, rows)
    parts: list[Callable[[], Metrics]] = []
    if rows.sft:
        parts.append(lambda: _demonstrations(bench, rows.sft))
    if rows.preferences:
        parts.append(lambda: _preferences(bench, rows.preferences))
    if rows.prompts:
        parts.append(lambda: _comparison(bench, functions, rows.prompts))
    run.begin(len(parts), "parts")
    metrics: Metrics = {}
    for step, part in enumerate(parts, start=1):
        found = part()
        _check_finite(found)
        run.log(step, found)
        metrics |= found
    assert set(metrics) == set(promised), set(metrics) ^ set(promised)
    _report(recipe, run, rows, metrics)
    return StageMetrics(metrics=metrics)


def _bench(recipe: Recipe, run: Run, rows: HeldOut) -> Bench:
    source = run.base_source()
    tokenizer = loading.load_tokenizer(source, recipe.base.revision)
    chat_template.prepare(tokenizer, recipe.base.chat_template)
    references = {CANDIDATE: recipe.eval.candidate, BASELINE: recipe.eval.baseline, REWARD: recipe.eval.reward}
    roles = {
        role: None if reference == "base" else run.model_of(reference)
        for role, reference in references.items()
        if reference is not None
    }
    judge = roles.get(REWARD)
    if judge is not None:
        prompts = [*(row.prompt for row in rows.prompts), *(row.prompt for row in rows.preferences)]
        build.check_tokenizer(tokenizer, judge, prompts, location="eval.reward")
    bank = MultiAdapterModel.load(recipe.base, recipe.adapter, source, roles, smoke=run.smoke)
    if REWARD in roles and REWARD not in bank.heads:
        hint = "Name a run of the reward stage, or null."
        raise ModelError(f"{recipe.eval.reward} is no reward model.", location="eval.reward", hint=hint)
    return Bench(recipe, run, bank, tokenizer)


def _demonstrations(bench: Bench, rows: Sequence[SftRow]) -> Metrics:
    """Loss on the completions, weighted by token: a mean of batch means would depend on the batches."""
    prompts, completions = [], []
    limit = bench.recipe.sft.max_length
    for pair in chat_template.encode_pairs(bench.tokenizer, [(row.prompt, row.completion) for row in rows]):
        # without a prompt, the first token has nothing to be predicted from
        start = len(pair.prompt_ids) or 1
        ids = (pair.prompt_ids + pair.completion_ids)[:limit]
        if len(ids) > start:
            prompts.append(ids[:start])
            completions.append(ids[start:])
    _warn_dropped(bench.run, "demonstrations", len(prompts), len(rows), f"the prompt fills sft.max_length ({limit})")
    metrics: Metrics = {}
    for role in bench.sides:
        total = sum(float(-lp.sum()) for lp in _logprobs(bench, role, prompts, completions, temperature=1.0))
        nll = total / sum(map(len, completions))
        if role == BASELINE:
            metrics["sft.nll.baseline"] = nll
        else:
            metrics |= {"sft.nll": nll, "sft.perplexity": math.exp(min(nll, 700.0))}  # exp(710) overflows
    return metrics


def _preferences(bench: Bench, rows: Sequence[PreferenceRow]) -> Metrics:
    """How often the reward model prefers what people chose; a tie is counted apart."""
    limit = bench.recipe.reward.max_length
    chosen = chat_template.encode_pairs(bench.tokenizer, [(row.prompt, row.chosen) for row in rows])
    rejected = chat_template.encode_pairs(bench.tokenizer, [(row.prompt, row.rejected) for row in rows])
    pairs = [
        (c, r)
        for c, r in zip(chosen, rejected, strict=True)
        if max(len(c.completion_ids), len(r.completion_ids)) + len(c.prompt_ids) <= limit
    ]
    _warn_dropped(bench.run, "preferences", len(pairs), len(rows), f"longer than reward.max_length ({limit})")
    scores = _scores(bench, [e.prompt_ids + e.completion_ids for pair in pairs for e in pair])
    margins = [c - r for c, r in zip(scores[::2], scores[1::2], strict=True)]
    longer = [float(len(c.completion_ids) - len(r.completion_ids)) for c, r in pairs]
    return comparison.ranking(margins, longer)


def _comparison(bench: Bench, functions: Functions, rows: Sequence[PromptRow]) -> Metrics:
    """Both sides answer the same prompts with the same decoding; every difference is paired by prompt."""
    limit = bench.recipe.ppo.max_prompt_length
    encoded = chat_template.encode_prompts(bench.tokenizer, [row.prompt for row in rows])
    kept = [(row, ids) for row, ids in zip(rows, encoded, strict=True) if len(ids) <= limit]
    _warn_dropped(bench.run, "prompts", len(kept), len(rows), f"longer than ppo.max_prompt_length ({limit})")
    if len(kept) < FEW and not bench.run.smoke:
        logger.warning(f"{len(kept)} held-out prompts: the intervals say little below {FEW}.")
    prompts, ids = [row for row, _ in kept], [ids for _, ids in kept]
    answer = bench.recipe.eval.max_new_tokens or bench.recipe.ppo.max_new_tokens
    warnings = length_checks.check_positions(
        loading.read_model_sizes(bench.run.base_source(), bench.recipe.base.revision).positions,
        max(map(len, ids)) + answer,
        limit + answer,
        "eval.max_new_tokens",
        what="a prompt with its answer",
    )
    for warning in warnings:
        logger.warning(warning)
    sides = {role: _answer(bench, role, functions, prompts, ids) for role in bench.sides}
    metrics: Metrics = {}
    for role, side in sides.items():
        suffix = "" if role == CANDIDATE else ".baseline"
        figures = comparison.figures(side)
        metrics |= {f"{name}{suffix}": value for name, value in figures.items()}
    if BASELINE in sides:
        metrics |= _kl(bench, ids, sides[CANDIDATE].responses)
        metrics |= comparison.gains(sides[CANDIDATE], sides[BASELINE], bench.recipe.seed)
    _write_samples(bench.run, prompts, sides)
    return metrics


def _answer(
    bench: Bench, role: str, functions: Functions, prompts: Sequence[PromptRow], ids: list[list[int]]
) -> ScoredCompletions:
    settings = bench.recipe.eval
    stops = StoppingRules(bench.tokenizer, bench.recipe.ppo.stop)
    torch.manual_seed(bench.recipe.seed)  # the same draws for both sides
    with bench.bank.use(role) as model:
        responses = generation.generate(
            model,
            ids,
            pad_id=bench.tokenizer.pad_token_id,
            stops=stops,
            max_new_tokens=settings.max_new_tokens or bench.recipe.ppo.max_new_tokens,
            temperature=settings.temperature,
            batch_size=settings.batch_size,
        )
    texts = [stops.text(response) for response in responses]
    whole = [prompt + response for prompt, response in zip(ids, responses, strict=True)]
    scores = _scores(bench, whole) if settings.reward is not None else []
    said = [build.as_completion(row.prompt, content) for row, content in zip(prompts, texts, strict=True)]
    answered = build.Completions(prompts, ids, responses, said)
    columns = {**answered.columns, "completion_ids": responses, "prompt_ids": ids}  # as PPO hands them over
    try:
        judged = {name: build.call(function, answered.prompts, said, columns) for name, function in functions.items()}
    except DivergedError as error:  # in PPO it may be the policy's doing; nothing trains here
        raise RecipeError(error.issues) from error.__cause__
    _check_finite({name: sum(values) for name, values in judged.items()})
    return ScoredCompletions(responses, texts, scores, judged, [stops.is_truncated(response) for response in responses])


def _kl(bench: Bench, prompts: list[list[int]], responses: list[list[int]]) -> Metrics:
    """KL(of ‖ against) by k1, the mean of log(p/q) over answers of `of`, as sampled: at the same temperature."""
    temperature = bench.recipe.eval.temperature
    ours = _logprobs(bench, CANDIDATE, prompts, responses, temperature)
    theirs = _logprobs(bench, BASELINE, prompts, responses, temperature)
    total = sum(float((p - q).sum()) for p, q in zip(ours, theirs, strict=True))
    return {"kl": total / len(responses), "kl.token": total / sum(map(len, responses))}


def _logprobs(
    bench: Bench, role: str, prompts: list[list[int]], responses: list[list[int]], temperature: float
) -> list[torch.Tensor]:
    return scoring.token_logprobs(
        bench.bank,
        role,
        prompts,
        responses,
        pad_id=bench.tokenizer.pad_token_id,
        temperature=temperature,
        max_tokens=bench.recipe.ppo.micro_batch_tokens,
    )


def _scores(bench: Bench, sequences: list[list[int]]) -> list[float]:
    limit = bench.recipe.ppo.micro_batch_tokens
    pad_id = bench.tokenizer.pad_token_id
    scores = scoring.final_scores(bench.bank, REWARD, sequences, pad_id=pad_id, max_tokens=limit).tolist()
    _check_finite({"the reward model's score": sum(scores)})
    return scores


def _warn_dropped(run: Run, what: str, kept: int, rows: int, why: str) -> None:
    if not kept:
        raise DataError(
            f"none of {rows} held-out {what} can be used: {why}.", location="eval", hint="Raise that limit."
        )
    if kept < rows:
        logger.warning(f"{rows - kept} of {rows} held-out {what} dropped: {why}.")


def _check_finite(metrics: Metrics) -> None:
    """A sum is finite only where each of its terms is, so sums will do."""
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        hint = "A model that diverged, or a function in eval.python, gives such numbers."
        raise ModelError(f"{', '.join(broken)}: not a finite number.", location="eval", hint=hint)


def _write_samples(run: Run, prompts: Sequence[PromptRow], sides: Mapping[str, ScoredCompletions]) -> None:
    for index, row in enumerate(prompts):
        line: dict[str, object] = {"prompt": row.prompt}
        line |= {role: side.texts[index] for role, side in sides.items()}
        line |= {f"{role}_score": side.scores[index] for role, side in sides.items() if side.scores}
        for role, side in sides.items():
            suffix = "" if role == CANDIDATE else ".baseline"
            line |= {f"{name}{suffix}": values[index] for name, values in side.judged.items()}
        run.sample(line)


def _report(recipe: Recipe, run: Run, rows: HeldOut, metrics: Metrics) -> None:
    verdicts = gates.judge(recipe.eval.gates, metrics)
    for verdict in verdicts:
        logger.info(verdict.text)
    sizes = {"demonstrations": len(rows.sft), "preferences": len(rows.preferences), "prompts": len(rows.prompts)}
    page = report.Report(recipe.eval.candidate, recipe.eval.baseline, recipe.eval.reward, sizes, metrics, verdicts)
    report.write(page, run.path)
