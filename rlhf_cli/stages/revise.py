"""Let a model critique and revise its own completions by a constitution. The revisions are demonstrations.

The run's `data/train.jsonl` has one line per prompt, so that `data.sft: {run: revise@latest}` trains on it:

    {"prompt": …, "completion": …}

`samples.jsonl` has the draft, each critique with its principle, and each revision. A step covers a few batches of
prompts and is seeded by its number, so that a resumed run gives the same result.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlhf_cli.ai_feedback.revise import Revised, Round, draw_principle, revise
from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import PromptRow, Text
from rlhf_cli.errors import ModelError
from rlhf_cli.formatting import format_count
from rlhf_cli.pipeline.references import constitution_of
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe.constitution import Constitution, read_constitution
from rlhf_cli.rewards.base import as_completion
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training.prepared_data import PreparedData, log_dropped, prepare_all_prompts

logger = logging.getLogger(__name__)

ROLE = "of"  # of the model, and the field of the section
ROWS_FILE = "train.jsonl"
BATCHES_PER_STEP = 4  # a killed run revises at most these again


def prepare(stage: ResolvedStage) -> PreparedData:
    """Load and tokenize the prompts, also those that a hash holds out: it holds out their demonstrations as well."""
    return prepare_all_prompts(stage)


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Write a draft for each prompt, revise it, and write the revisions to `data/train.jsonl`."""
    path = constitution_of(stage.section, stage.recipe)
    assert path is not None, "the recipe was validated"
    constitution = read_constitution(Path(path))
    data = prepare(stage)
    rounds = format_count(stage.section.rounds, "round")
    logger.info(f"revising {format_count(data.train.kept, 'completion')} in {rounds} by {path}")
    log_dropped("prompts", data.split, data.train, data.warnings)
    rows_per_step = BATCHES_PER_STEP * stage.section.batch_size
    starts = range(0, data.train.kept, rows_per_step)
    run.begin(len(starts), "step", handles_signals=True)
    writer: _Writer | None = None
    for number, start in enumerate(starts, start=1):
        if number <= run.resumed_step:
            continue
        writer = writer or _Writer(stage, data)
        rows = range(start, min(start + rows_per_step, data.train.kept))
        _revise_step(stage, run, data, writer, constitution, number, rows)
        with run.checkpoint(number):
            pass  # the lines of `samples.jsonl` are what it saves
        if run.stop_requested and number < len(starts):
            raise run.stopped(number)
    return StageMetrics(_write_rows(stage, run, data.train.rows))


def _revise_step(
    stage: ResolvedStage,
    run: Run,
    data: PreparedData,
    writer: _Writer,
    constitution: Constitution,
    number: int,
    rows: range,
) -> None:
    """Draft, critique and revise the completions of one step, and append a line per prompt to `samples.jsonl`."""
    import torch

    seed = stage.recipe.seed
    torch.manual_seed(random.Random(f"{seed} {number}").getrandbits(64))
    prompts = [data.train.rows[row].prompt for row in rows]
    drafts = writer.write_ids([data.train.ids[row] for row in rows])
    assert all(draft is not None for draft in drafts), "prepare() checks the lengths of the prompts"
    texts = [_as_message_text(prompt, draft or "") for prompt, draft in zip(prompts, drafts, strict=True)]
    drawn = [[draw_principle(constitution, seed, row, one) for one in range(stage.section.rounds)] for row in rows]
    revised = revise(prompts, texts, drawn, writer.write)
    for row, prompt, one in zip(rows, prompts, revised, strict=True):
        run.sample({"step": number, "row": row, "prompt": prompt, **one.as_json()})
    run.log(number, {"rows": float(len(revised)), "too_long": float(sum(one.is_too_long for one in revised))})


class _Writer:
    """Loads the model, continues prompts with it, and knows how many tokens fit into its context."""

    def __init__(self, stage: ResolvedStage, data: PreparedData) -> None:
        from rlhf_cli.inference.stopping import StoppingRules
        from rlhf_cli.models import loading
        from rlhf_cli.models.multi_adapter import MultiAdapterModel

        recipe, roles = stage.recipe, {ROLE: stage.model_path(ROLE)}
        self._section, self._tokenizer = stage.section, data.tokenizer
        self._model = MultiAdapterModel.load(recipe.base, recipe.adapter, stage.base_path, roles, smoke=stage.smoke)
        self._model.set_trainable([])
        self._stops = StoppingRules(data.tokenizer, stage.recipe.ppo.stop)
        self._positions = loading.read_model_sizes(stage.base_path, stage.recipe.base.revision).positions

    def write(self, prompts: Sequence[Text]) -> list[str | None]:
        """Return a continuation of each prompt, or None if it exceeds the context."""
        return self.write_ids(chat_template.encode_prompts(self._tokenizer, prompts))

    def write_ids(self, prompts: Sequence[list[int]]) -> list[str | None]:
        """Return a continuation of each prompt, given as token ids, or None if it exceeds the context."""
        from rlhf_cli.inference import generation

        room = None if self._positions is None else self._positions - self._section.max_new_tokens
        fitting = [index for index, ids in enumerate(prompts) if room is None or len(ids) <= room]
        found: list[str | None] = [None] * len(prompts)
        if not fitting:
            return found
        with self._model.use(ROLE) as active:
            responses = generation.generate(
                active,
                [prompts[index] for index in fitting],
                pad_id=int(self._tokenizer.pad_token_id),
                stops=self._stops,
                max_new_tokens=self._section.max_new_tokens,
                temperature=self._section.temperature,
                batch_size=self._section.batch_size,
            )
        for index, response in zip(fitting, responses, strict=True):
            found[index] = self._stops.text(response)
        return found


def _as_message_text(prompt: Text, text: str) -> str:
    """Return a completion verbatim for a text prompt, and without white space around it for a conversation."""
    return text if isinstance(prompt, str) else text.strip()


def _write_rows(stage: ResolvedStage, run: Run, prompts: Sequence[PromptRow]) -> dict[str, float]:
    """Write the revisions as demonstrations, and return the metrics.

    Raises:
        ModelError: No revision has text, and this is no smoke run, whose weights are random.
    """
    counts = Counter({"rows": 0, "empty": 0, "too_long": 0, "unchanged": 0})
    lengths: list[int] = []
    with (
        (run.path / "samples.jsonl").open(encoding="utf-8") as lines,
        (run.data_dir / ROWS_FILE).open("w", encoding="utf-8") as out,
    ):
        for line in map(json.loads, lines):
            one = Revised(line["draft"], [Round(**item) for item in line["rounds"]], line["too_long"])
            if one.is_too_long or not one.completion.strip():
                counts["too_long" if one.is_too_long else "empty"] += 1
                continue
            counts["rows"] += 1
            counts["unchanged"] += one.completion.strip() == one.draft.strip()
            lengths.append(len(one.completion))
            prompt = prompts[line["row"]].prompt
            row = {"prompt": prompt, "completion": as_completion(prompt, one.completion)}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    if not counts["rows"] and not stage.smoke:
        message = f"no revision has text; revised {format_count(len(prompts), 'completion')}."
        hint = "Use another model in revise.of, or raise revise.max_new_tokens."
        raise ModelError("model.no-revisions", message, location="revise", hint=hint)
    length = sum(lengths) / len(lengths) if lengths else 0.0
    return {**{f"revise.{name}": float(number) for name, number in counts.items()}, "revise.length": length}
