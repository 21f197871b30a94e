"""Sample several completions per prompt from one or several models, for people or a judge to compare.

The run's `data/train.jsonl` has one line per prompt, which `rlhf annotate import` and `rlhf annotate select` read:

    {"prompt": …, "completions": [{"text": …, "source": "support-bot/sft@v0003"}, …], "language": "en", …}

`prompt` is a text or a list of messages, and `text` is accordingly a text or a list with the assistant's message. The
prompt's other columns follow unchanged. A prompt has at least two completions, all distinct; their order says nothing.

The models are sampled one after the other, each in steps of a few batches. A step is seeded by its number, and its
completions are written to `samples.jsonl` before its checkpoint, so that a resumed run gives the same result. Another
batch size gives other completions: which rows share a batch decides both the draws and the rounding of the logits.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import ModelError
from rlhf_cli.feedback.similarity import distinct
from rlhf_cli.formatting import format_count
from rlhf_cli.pipeline.inputs import Input
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.rewards.base import as_completion, completion_text
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training.prepared_data import PreparedData, log_dropped, prepare_all_prompts

if TYPE_CHECKING:
    from rlhf_cli.models.multi_adapter import MultiAdapterModel

logger = logging.getLogger(__name__)

ROWS_FILE = "train.jsonl"
MIN_COMPLETIONS = 2  # of a prompt; one has nothing to be compared with
BATCHES_PER_STEP = 4  # a killed run samples at most these again; rows of similar length share a batch


class Sampler(NamedTuple):
    """A model to sample from.

    Attributes:
        role: Its role in the model that is loaded.
        folder: The folder of its adapter or model, or None for the bare base.
        source: Its name in the rows.
    """

    role: str
    folder: Path | None
    source: str


class Step(NamedTuple):
    """The completions that one step samples.

    Attributes:
        number: Its number, counted from 1.
        sampler: The model.
        rows: Indices of the prompts.
    """

    number: int
    sampler: Sampler
    rows: range


def prepare(stage: ResolvedStage) -> PreparedData:
    """Load and tokenize the prompts, also those that a hash holds out: it holds out their pairs as well."""
    return prepare_all_prompts(stage)


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Sample the completions and write the distinct ones to `data/train.jsonl`."""
    data = prepare(stage)
    samplers = _samplers(stage)
    share = stage.section.samples_per_prompt // len(samplers)
    prompts = format_count(data.train.kept, "prompt")
    logger.info(f"sampling {share} completions each for {prompts} from {', '.join(s.source for s in samplers)}")
    log_dropped("prompts", data.split, data.train, data.warnings)
    rows_per_step = max(1, BATCHES_PER_STEP * stage.section.batch_size // share)
    steps = _plan(samplers, data.train.kept, rows_per_step)
    run.begin(len(steps), "step", handles_signals=True)
    model: MultiAdapterModel | None = None
    for step in steps[run.resumed_step :]:
        if model is None or step.sampler.role not in model.roles:
            model = None  # frees a whole model before the next one is loaded
            model = _load(stage, samplers if stage.recipe.adapter is not None else [step.sampler])
        _sample(stage, run, data, model, step, share)
        with run.checkpoint(step.number):
            pass  # the lines of `samples.jsonl` are what it saves
        if run.stop_requested and step is not steps[-1]:
            raise run.stopped(step.number)
    return StageMetrics(_write_rows(stage, run, data.train.rows))


def _samplers(stage: ResolvedStage) -> list[Sampler]:
    """Return the models of `sample.of`, in their order."""
    inputs = {item.role: item for item in stage.inputs}
    found = []
    for index, ref in enumerate(stage.section.of):
        item = inputs.get(f"of.{index}")
        folder = None if item is None else Path(item.model_path)
        source = f"base:{_short(stage.recipe.base.model)}" if item is None else _source(item, ref)
        found.append(Sampler(f"model_{index}", folder, source))
    return found


def _source(item: Input, ref: str) -> str:
    return item.versioned_ref if item.kind == "run" else _short(ref)


def _short(ref: str) -> str:
    """Return a Hub id, or the last parts of a path, which is not the same on another machine."""
    return "/".join(Path(ref).parts[-2:])


def _plan(samplers: Sequence[Sampler], prompts: int, rows_per_step: int) -> list[Step]:
    """Return the steps: all prompts with the first model, then with the next one."""
    starts = range(0, prompts, rows_per_step)
    parts = [(s, range(start, min(start + rows_per_step, prompts))) for s in samplers for start in starts]
    return [Step(number, sampler, rows) for number, (sampler, rows) in enumerate(parts, start=1)]


def _load(stage: ResolvedStage, samplers: Sequence[Sampler]) -> MultiAdapterModel:
    from rlhf_cli.models.multi_adapter import MultiAdapterModel

    roles = {sampler.role: sampler.folder for sampler in samplers}
    recipe = stage.recipe
    model = MultiAdapterModel.load(recipe.base, recipe.adapter, stage.base_path, roles, smoke=stage.smoke)
    model.set_trainable([])
    return model


def _sample(
    stage: ResolvedStage, run: Run, data: PreparedData, model: MultiAdapterModel, step: Step, share: int
) -> None:
    """Sample the completions of one step, and append a line per prompt to `samples.jsonl`."""
    import torch

    from rlhf_cli.inference import generation
    from rlhf_cli.inference.stopping import StoppingRules

    started = time.monotonic()
    stops = StoppingRules(data.tokenizer, stage.recipe.ppo.stop)
    torch.manual_seed(random.Random(f"{stage.recipe.seed} {step.number}").getrandbits(64))
    with model.use(step.sampler.role) as active:
        responses = generation.generate(
            active,
            [data.train.ids[row] for row in step.rows for _ in range(share)],
            pad_id=int(data.tokenizer.pad_token_id),
            stops=stops,
            max_new_tokens=stage.section.max_new_tokens,
            temperature=stage.section.temperature,
            batch_size=stage.section.batch_size,
        )
    tokens = [len(response) for response in responses]
    truncated = [stops.is_truncated(response) for response in responses]
    texts = [stops.text(response) for response in responses]
    for index, row in enumerate(step.rows):
        own = slice(index * share, (index + 1) * share)
        line = {"step": step.number, "row": row, "source": step.sampler.source, "prompt": data.train.rows[row].prompt}
        run.sample({**line, "completions": texts[own], "tokens": tokens[own], "truncated": truncated[own]})
    values = {
        "response_length": sum(tokens) / len(tokens),
        "truncation_rate": sum(truncated) / len(truncated),
        "tokens_per_second": sum(tokens) / (time.monotonic() - started),
    }
    run.log(step.number, values)


def _write_rows(stage: ResolvedStage, run: Run, prompts: Sequence[PromptRow]) -> dict[str, float]:
    """Write the distinct completions of each prompt, and return the metrics.

    Raises:
        ModelError: No prompt has two distinct completions, and this is no smoke run, whose weights are random.
    """
    sampled = list(_read_samples(run.path / "samples.jsonl"))
    by_row: list[list[dict[str, Any]]] = [[] for _ in prompts]
    for line in sampled:
        by_row[line["row"]].append(line)
    counts = Counter({"prompts": 0, "prompts_dropped": 0, "completions": 0, "duplicates": 0, "empty": 0})
    with (run.data_dir / ROWS_FILE).open("w", encoding="utf-8") as out:
        for index, (prompt, lines) in enumerate(zip(prompts, by_row, strict=True)):
            first = index % len(lines)  # in turns, so that no model always loses the completions that several give
            completions = _distinct_completions(stage, prompt, lines[first:] + lines[:first], counts)
            if len(completions) < MIN_COMPLETIONS:
                counts["prompts_dropped"] += 1
                continue
            counts["prompts"] += 1
            counts["completions"] += len(completions)
            row = {"prompt": prompt.prompt, "completions": completions, **prompt.extra}
            out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    if not counts["prompts"] and not stage.smoke:
        message = f"no prompt has two distinct completions; sampled {format_count(len(prompts), 'prompt')}."
        hint = "Raise sample.temperature, sample.max_new_tokens or sample.max_similarity, or add models to sample.of."
        raise ModelError("model.no-distinct-completions", message, location="sample", hint=hint)
    tokens = [number for line in sampled for number in line["tokens"]]
    truncated = [flag for line in sampled for flag in line["truncated"]]
    return {
        **{f"sample.{name}": float(number) for name, number in counts.items()},
        "sample.response_length": sum(tokens) / len(tokens),
        "sample.truncation_rate": sum(truncated) / len(truncated),
    }


def _distinct_completions(
    stage: ResolvedStage, prompt: PromptRow, lines: Sequence[Mapping[str, Any]], counts: Counter[str]
) -> list[dict[str, Any]]:
    """Return the distinct completions of a prompt as they are written, and count those that are dropped.

    Args:
        stage: The resolved stage.
        prompt: The prompt.
        lines: What each model sampled, as in `samples.jsonl`.
        counts: Where empty completions and duplicates are counted.
    """
    turns = zip(*(line["completions"] for line in lines), strict=True)
    given = [(line["source"], text) for turn in turns for line, text in zip(lines, turn, strict=True)]
    found = [(source, as_completion(prompt.prompt, text)) for source, text in given if text.strip()]
    kept = distinct([completion_text(text) for _, text in found], stage.section.max_similarity)
    counts["empty"] += len(given) - len(found)
    counts["duplicates"] += len(found) - len(kept)
    return [{"text": found[index][1], "source": found[index][0]} for index in kept]


def _read_samples(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
