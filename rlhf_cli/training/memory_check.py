"""What sft, reward and ppo take at their peak, told before weights are loaded; refused where the device has less.

The peak is that of the phase that takes most, not a sum over phases. Each phase has what is alive in it: see
`ppo.trainer`, `ppo.update` and `ppo.head` for PPO, trl.kernels.ChunkedLogProbFunction for what TRL's loss takes.
On a CPU this is what the process takes above its interpreter and imports, on a GPU the peak of torch's allocator.

Left out, for it is small: the data, the libraries' own workspaces, scores and advantages.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from rlhf_cli import distributed
from rlhf_cli.errors import HardwareError
from rlhf_cli.inference.token_logprobs import CHUNK_LOGITS
from rlhf_cli.models import footprint, loading
from rlhf_cli.models.footprint import ModelFootprint, Parts, format_bytes
from rlhf_cli.models.loading import default_device
from rlhf_cli.ppo.trainer import ROLLOUT_TOKENS
from rlhf_cli.recipe.schema import Adapter, Recipe
from rlhf_cli.runs.run import Run
from rlhf_cli.training import held_out_metrics

logger = logging.getLogger(__name__)

BACKWARD = 2  # of a layer's widest tensor, alive at once: its gradients on both ways, less what is freed by then
FORWARD = 4  # the same without gradients: the base's result, the adapter's, its scaled one, and the other branch
CHUNK_COPIES = 4  # of a chunk of logits: its own, their log-softmax, and both results of the chunk before
TILE = (4096, 32_768)  # tokens × vocabulary: the logits that TRL's loss computes at a time
TILE_COPIES = 7  # of a tile, float32, and a mask of bytes, where its kernel is plain torch; with Triton there is none
DRAWS = 5  # of a step's logits in generate: float32, by temperature, softmax, and what multinomial takes
ESTIMATED = ("sft", "reward", "ppo")
UNKNOWN = "there is no way to estimate it for this base"
UNCOUNTED = "its architecture cannot be tried without weights: this is by its parameters alone"


class Estimate(NamedTuple):
    """The phase that takes most, and what is alive in it."""

    phase: str
    parts: Parts
    capacity: float  # bytes of the device that this process may have
    device: str
    is_whole: bool  # False: activations and cache are not in it, for there is no way to count them

    def __str__(self) -> str:
        text = f"an estimated {format_bytes(self.parts.total)} of {format_bytes(self.capacity)} ({self.device})"
        return f"{text}, at {self.phase}: {self.parts}" + ("" if self.is_whole else f"; {UNCOUNTED}")

    def as_json(self) -> dict[str, Any]:
        """Bytes, by part."""
        parts = {name: round(size) for name, size in self.parts._asdict().items()}
        rest = {"capacity": round(self.capacity), "device": self.device, "is_whole": self.is_whole}
        return {"phase": self.phase, **parts, "total": round(self.parts.total), **rest}


def check(run: Run, recipe: Recipe, lengths: Sequence[int], held_out: Sequence[int]) -> None:
    """Tell the estimate; a smoke run's base is another one, and tiny. `lengths`: tokens of the rows.

    Where memory is short, what is freed is returned at once from now on. Of several processes the main one looks.

    Raises:
        HardwareError: as `refusal` has it.
    """
    if run.smoke:
        return
    short, found, refused = False, None, None
    if distributed.is_main():
        source, longest, aside = run.base_source(), max(lengths), max(held_out, default=0)
        found = estimate(run.stage, recipe, source, longest, aside)
        refused = None if found is None else refusal(run.stage, recipe, source, longest, aside, found)
        short = found is not None and found.device == "cpu" and 2 * found.parts.needed > found.capacity
    if refused is not None:
        raise refused
    logger.info(f"memory: {UNKNOWN if found is None else found}")
    if distributed.broadcast_object(short):
        footprint.release_freed_memory()


def refusal(
    stage: str, recipe: Recipe, source: str, longest: int, held_out: int, found: Estimate
) -> HardwareError | None:
    """What to raise where it is more than the device has; it names what to lower, and to what."""
    if found.parts.needed <= found.capacity:
        return None
    hint = _mend(stage, recipe, source, longest, held_out, found.capacity)
    return HardwareError(f"it does not fit: {found}.", location=stage, hint=hint)


def exhausted(run: Run, recipe: Recipe) -> HardwareError:
    """What to raise where memory ran out: in which step, the peak, the estimate, and what to lower to what."""
    steps = len(run.logged())
    when = f"after {steps:,} logged steps" if steps else "before the first logged step"
    message = (
        f"out of memory {when}, at a peak of {format_bytes(footprint.peak(default_device()))}; incomplete: {run.path}"
    )
    return HardwareError(message, location=run.stage, hint=_mend_after_failure(run, recipe))


def _mend_after_failure(run: Run, recipe: Recipe) -> str:
    stage, source = run.stage, run.base_source()
    if stage not in ESTIMATED:
        key = {"pretrain": "pretrain.micro_batch_size", "eval": "eval.batch_size"}.get(stage)
        return f"Lower {key}." if key else "Take a smaller base."
    section = getattr(recipe, stage)
    longest = section.max_prompt_length if stage == "ppo" else section.max_length
    found = None if run.smoke else estimate(stage, recipe, source, longest, longest)
    if found is None:
        return f"Lower {_key(stage)}, or set base.quantize: nf4."
    less = 0.75 * min(found.capacity, found.parts.needed)  # how much was lacking is not known
    what = "prompts" if stage == "ppo" else "rows"
    return (
        f"It takes {found}, with {what} of {longest:,} tokens. {_mend(stage, recipe, source, longest, longest, less)}"
    )


def estimate(stage: str, recipe: Recipe, source: str, longest: int, held_out: int) -> Estimate | None:
    """The peak of sft, reward or ppo with rows (prompts) of at most `longest` tokens, of those held out `held_out` (0:
    there are none); None where there is no way."""
    models = _models(stage, recipe, source)
    return None if models is None else _peak(stage, recipe, models, longest, held_out)


def trainable(stage: str, recipe: Recipe, source: str) -> dict[str, int]:
    """How many parameters a stage trains, by the name of their module; a critic's are as many again."""
    try:
        found = footprint.trainable(recipe.base, recipe.adapter, source)
        hidden = loading.sizes(source, recipe.base.revision).hidden or 0
    except Exception:  # as in `_models`
        return {}
    if stage == "reward":
        found.pop("lm_head", None)
        found["score"] = hidden
    if stage == "ppo":
        has_own = recipe.ppo.critic.kind == "adapter"
        found["critic"] = hidden + (sum(found.values()) if has_own else 0)
    return found


def _moments(optimizer: str) -> float:
    """What an optimizer keeps, in float32 numbers for each that is trained; 0 where it is not known."""
    if optimizer.startswith(("adamw_8bit", "adamw_bnb_8bit")):
        return 0.5
    if optimizer.startswith("adamw"):
        return 2
    return 1 if optimizer.startswith("lion_32bit") else 0


class _Models(NamedTuple):
    """What is known of the models alone."""

    shape: ModelFootprint
    judges: float  # bytes of reward models of somebody's own


def _models(stage: str, recipe: Recipe, source: str) -> _Models | None:
    try:
        rows = 1 if stage == "ppo" else getattr(recipe, stage).micro_batch_size * (1 + (stage == "reward"))
        padded = rows > 1 and not recipe.base.attention.startswith("flash")  # PPO needs no mask
        shape = footprint.shape(recipe.base, recipe.adapter, source, padded=padded)
        others = [term for term in recipe.ppo.reward if term.model is not None] if stage == "ppo" else []
        judges = sum(_judge(recipe, str(term.model), term.revision) for term in others)
    except Exception:  # an architecture may fail in any way; loading it will tell which
        return None
    return _Models(shape, judges)


def _peak(stage: str, recipe: Recipe, models: _Models, longest: int, held_out: int) -> Estimate:
    device = default_device()
    processes = max(recipe.launch.processes, distributed.world_size())
    if recipe.launch.strategy == "fsdp" and processes > 1:  # its part of each layer, and the layer that is called
        shape = models.shape
        mine = shape.weights - shape.layers * (1 - 1 / processes) + shape.layer
        models = models._replace(shape=shape._replace(weights=mine, mapped=0))
    if stage == "ppo":
        phases = _ppo(recipe, models, longest, processes, device)
    else:
        phases = _trl(stage, recipe, models.shape, longest, held_out, processes, device)
    phase, parts = max(phases, key=lambda item: item[1].total)
    capacity = footprint.capacity(device) / (processes if device.type == "cpu" else 1)
    return Estimate(phase, parts, capacity, device.type, models.shape.is_called)


def _judge(recipe: Recipe, source: str, revision: str | None) -> float:
    """Bytes of a reward model of somebody's own, which is never quantized."""
    own = recipe.base.model_copy(update={"model": source, "revision": revision or "main", "quantize": "none"})
    return footprint.scorer_weights(own)


def _ppo(
    recipe: Recipe, models: _Models, prompt: int, processes: int, device: torch.device
) -> Iterator[tuple[str, Parts]]:
    settings, shape = recipe.ppo, models.shape
    moments = _moments(settings.trainer.get("optim", "adamw"))
    on_cpu = device.type == "cpu"
    has_critic = settings.critic.kind == "adapter"
    runs = sum(term.run is not None for term in settings.reward)
    moved = shape.trained * (1 + has_critic)
    if recipe.adapter is None:  # policy and critic float32, reference and reward runs as loaded
        scorers = shape.head * (runs + (has_critic and runs > 0) * 4 / shape.itemsize)
        weights = moved + shape.weights * (1 + runs) - scorers
        adapters = 0.0
    else:
        weights, adapters = shape.weights, shape.trained * (1 + has_critic + runs + (settings.start != "base"))
    rest = Parts(
        weights=weights + models.judges + shape.unpacked,
        adapters=adapters,
        training=moments * moved,
        activations=shape.kept.fixed,
        cache=0,
        logits=0,
        copies=moved * on_cpu,
        mapped=shape.mapped,
    )
    width = prompt + settings.max_new_tokens
    answers = math.ceil(settings.rollout_batch_size * settings.samples_per_prompt / processes)
    passing = FORWARD * shape.widest + 3 * shape.hidden  # a token, through a layer without gradients

    rows = _rows(ROLLOUT_TOKENS * settings.micro_batch_tokens, width, answers)
    reading = rest.activations + rows * prompt * (passing + prompt * (1 + shape.itemsize))  # with its mask
    # On a CPU torch lays a 16-bit output layer down once for each row, where the last of several tokens are read.
    laid_down = rows * shape.hidden * shape.vocab_size * (on_cpu and shape.itemsize < 4)
    yield "rollout", rest._replace(activations=reading, cache=rows * prompt * shape.cache, logits=laid_down)
    drawn = DRAWS * 4 * rows * shape.vocab_size
    yield "rollout", rest._replace(cache=rows * width * shape.cache, logits=drawn)

    rows = _rows(settings.micro_batch_tokens, width, answers)
    yield "scoring", rest._replace(activations=rest.activations + rows * width * passing)
    logits = _chunk(shape, device, rows * settings.max_new_tokens, CHUNK_COPIES)
    yield "scoring", rest._replace(activations=rest.activations + rows * width * shape.hidden, logits=logits)

    minibatch = math.ceil(answers / settings.minibatches)
    rows = _rows(settings.micro_batch_tokens, width, minibatch)
    earlier = moved * (rows < minibatch)  # gradients of the micro-batches before
    recomputes = settings.trainer.get("activation_checkpointing", device.type == "cuda")
    kept = (shape.recomputed if recomputes else shape.kept).of(rows, width)
    kept += 3 * shape.hidden * rows * settings.max_new_tokens  # where answers are predicted, and their gradients
    in_layer = BACKWARD * shape.widest * rows * width
    copies = CHUNK_COPIES + (settings.entropy_coef > 0)
    logits = _chunk(shape, device, rows * settings.max_new_tokens, copies)
    begun = rest._replace(training=rest.training + earlier + 2 * shape.embedding)  # the head's, summed over chunks
    yield "update", begun._replace(activations=kept, logits=logits)
    yield "update", begun._replace(activations=kept + in_layer)
    policys = max(earlier, shape.trained) if has_critic else earlier
    yield "update", rest._replace(training=rest.training + policys, activations=kept + in_layer)
    yield "update", rest._replace(training=rest.training + moved * (1 + (processes > 1)))
    if on_cpu:  # a copy of the weights, and one of all that is written
        yield "saving", rest._replace(copies=rest.copies + moved * (2 + moments))


def _trl(
    stage: str, recipe: Recipe, shape: ModelFootprint, width: int, held_out: int, processes: int, device: torch.device
) -> Iterator[tuple[str, Parts]]:
    section = getattr(recipe, stage)
    moments = _moments(section.trainer.get("optim", "adamw"))
    on_cpu = device.type == "cpu"
    rows = section.micro_batch_size * (2 if stage == "reward" else 1)
    whole = recipe.adapter is None
    rest = Parts(
        weights=(shape.trained if whole else shape.weights) + shape.unpacked,
        adapters=0.0 if whole else shape.trained,
        training=moments * shape.trained + shape.trained * (processes > 1),  # and the buckets of DDP
        activations=shape.kept.fixed,
        cache=0,
        logits=0,
        copies=0,
        mapped=shape.mapped,
    )
    if stage == "reward":
        own_head = shape.head * (4 / shape.itemsize if whole else 1)
        rest = rest._replace(weights=rest.weights - own_head)
    earlier = shape.trained * (section.batch_size > section.micro_batch_size * processes)
    recomputes = section.trainer.get("gradient_checkpointing", device.type == "cuda")
    kept = (shape.recomputed if recomputes else shape.kept).of(rows, width) + 2 * shape.hidden * rows * width
    in_layer = BACKWARD * shape.widest * rows * width
    heads = shape.embedding * (stage == "sft")  # the gradient of a whole model's output layer comes first
    started = rest._replace(training=rest.training + earlier + heads, activations=kept)
    yield "update", started._replace(activations=kept + in_layer)
    yield "update", rest._replace(training=rest.training + shape.trained)
    if stage == "sft":
        tile = min(rows * width, TILE[0]) * min(shape.vocab_size, TILE[1])
        size = shape.itemsize + (0 if device.type in ("cuda", "xpu") else 4 * TILE_COPIES + 1)
        yield "update", started._replace(logits=tile * size)
        if held_out:  # Trainer hands out float32, and cross entropy makes a copy
            numbers = min(section.micro_batch_size * width * shape.vocab_size, held_out_metrics.LOGITS)
            yield "the loss on held-out rows", rest._replace(logits=numbers * (shape.itemsize + 8))
    if on_cpu:
        yield "saving", rest._replace(copies=moments * shape.trained)


def _rows(tokens: int, width: int, most: int) -> int:
    """Rows of `width` in a batch of at most `tokens` tokens, of `most` that there are."""
    return max(1, min(tokens // width, most))


def _chunk(shape: ModelFootprint, device: torch.device, tokens: int, copies: int) -> float:
    """Bytes of the logits that ppo.head has at a time, in so many float32 copies and one in a narrower dtype."""
    most = CHUNK_LOGITS.get(device.type, CHUNK_LOGITS["cuda"])
    numbers = min(max(1, most // shape.vocab_size), tokens) * shape.vocab_size
    return numbers * (4 * copies + (shape.itemsize if shape.itemsize < 4 else 0))


def _key(stage: str) -> str:
    """The setting that decides how much is in memory at once."""
    return "ppo.micro_batch_tokens" if stage == "ppo" else f"{stage}.micro_batch_size"


class _Change(NamedTuple):
    """A setting that makes the estimate smaller."""

    text: str
    section: str
    values: dict[str, Any]

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with it."""
        if self.section == "adapter":
            return recipe.model_copy(update={"adapter": Adapter()})
        section = getattr(recipe, self.section)
        values = {name: {**section.trainer, **v} if name == "trainer" else v for name, v in self.values.items()}
        return recipe.model_copy(update={self.section: section.model_copy(update=values)})


def _mend(stage: str, recipe: Recipe, source: str, longest: int, held_out: int, capacity: float) -> str:
    """The settings that, each by itself, bring the estimate to `capacity`; or else what all of them together do."""

    def best(changed: Recipe, changes: Sequence[_Change]) -> tuple[_Change | None, float]:
        """The first change that is enough, or the last; and the estimate with it."""
        models = _models(stage, changed, source)
        if models is None:
            return None, math.inf
        size = _peak(stage, changed, models, longest, held_out).parts.needed
        found = None
        for change in changes:
            if size <= capacity:
                break
            found, size = change, _peak(stage, change.of(changed), models, longest, held_out).parts.needed
        return found, size

    smaller = _smaller_batches(stage, recipe, longest)
    whole = _other_changes(stage, recipe)
    tried = [best(recipe, smaller), *((change, best(change.of(recipe), [])[1]) for change in whole)]
    fitting = [
        f"{change.text} ({format_bytes(size)})" for change, size in tried if change is not None and size <= capacity
    ]
    if fitting:
        return f"Set {', or '.join(fitting)}."
    for change in whole:
        recipe = change.of(recipe)
    last, size = best(recipe, smaller)
    texts = [change.text for change in (*whole, last) if change is not None]
    if size <= capacity:
        return f"Set {' and '.join(texts)} ({format_bytes(size)} with all of them)."
    return f"Take a smaller base or shorter rows: with {' and '.join(texts)} it is still {format_bytes(size)}."


def _smaller_batches(stage: str, recipe: Recipe, longest: int) -> list[_Change]:
    """The largest first, each at most half the one before."""
    if stage == "ppo":
        width = longest + recipe.ppo.max_new_tokens
        answers = recipe.ppo.rollout_batch_size * recipe.ppo.samples_per_prompt
        rows = min(recipe.ppo.micro_batch_tokens // width, answers)
        return [_Change(f"{_key(stage)}: {n * width}", stage, {"micro_batch_tokens": n * width}) for n in _halves(rows)]
    section = getattr(recipe, stage)
    numbers = [n for n in _halves(section.micro_batch_size) if section.batch_size % (n * recipe.launch.processes) == 0]
    return [_Change(f"{_key(stage)}: {n}", stage, {"micro_batch_size": n}) for n in numbers]


def _halves(number: int) -> Iterator[int]:
    while number > 1:
        number //= 2
        yield number


def _other_changes(stage: str, recipe: Recipe) -> list[_Change]:
    found: list[_Change] = []
    key = "activation_checkpointing" if stage == "ppo" else "gradient_checkpointing"
    if not getattr(recipe, stage).trainer.get(key, default_device().type == "cuda"):
        found.append(_Change(f"{stage}.trainer.{key}: true", stage, {"trainer": {key: True}}))
    if recipe.adapter is None:
        found.append(_Change("an adapter", "adapter", {}))
    elif recipe.base.quantize != "nf4":
        found.append(_Change("base.quantize: nf4", "base", {"quantize": "nf4"}))
    return found
