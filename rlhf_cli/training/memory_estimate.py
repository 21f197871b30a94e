"""Estimate the peak memory of a stage before weights are loaded.

The peak is that of the largest phase, not a sum over phases. Each phase counts what is alive in it: see `ppo.trainer`,
`ppo.update` and `inference.token_logprobs` for PPO, and trl.kernels.ChunkedLogProbFunction for TRL's loss. On a CPU the
estimate is what the process takes beyond its interpreter and imports; on a GPU it is the peak of torch's allocator.

Not counted, because it is small: the data, the libraries' own workspaces, scores and advantages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from rlhf_cli import distributed
from rlhf_cli.formatting import format_bytes
from rlhf_cli.inference.token_logprobs import CHUNK_LOGITS
from rlhf_cli.models import device_memory, footprint, loading
from rlhf_cli.models.footprint import MemoryBreakdown, ModelFootprint
from rlhf_cli.models.loading import default_device
from rlhf_cli.ppo.trainer import ROLLOUT_TOKENS
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.stages import StageSpec
from rlhf_cli.training import held_out_metrics

# Copies of a layer's widest tensor that are alive at once:
BACKWARD = 2  # with gradients: those on both paths, minus what is freed by then
FORWARD = 4  # without: the base's result, the adapter's, its scaled one, and the other branch
CHUNK_COPIES = 4  # of a chunk of logits: its own, their log-softmax, and both results of the chunk before
TILE = (4096, 32_768)  # tokens × vocabulary: the logits that TRL's loss computes at a time
TILE_COPIES = 7  # of a tile, in float32, plus a byte mask, if its kernel is plain torch; none with Triton
DRAWS = 5  # of a step's logits in generate: float32, by temperature, softmax, and multinomial's own
FLOAT32 = 4  # bytes
ROLLOUT_SHARE = 0.5  # of the memory that models and optimizer leave free, for a batch of a rollout
RECOMPUTE_SHARE = 0.8  # of the device's memory: above it, activations are recomputed rather than kept
UNCOUNTED = "activations not included: this architecture cannot run without weights"


class PPOPlan(NamedTuple):
    """What the memory of the device decides about PPO. It depends on nothing that changes from run to run."""

    rollout_tokens: int  # of a batch of `generate`, padding included
    recompute: bool  # activations in the backward pass


class Estimate(NamedTuple):
    """The largest phase, and the memory alive in it.

    Attributes:
        phase: Name of the phase.
        parts: Bytes by purpose.
        capacity: Bytes of the device that this process may use.
        device: Type of the device.
        is_whole: Whether activations and cache are included.
        plan: What the memory decides about PPO; None for another stage.
    """

    phase: str
    parts: MemoryBreakdown
    capacity: float
    device: str
    is_whole: bool
    plan: PPOPlan | None

    @property
    def fits(self) -> bool:
        """Whether the device has as much memory as is needed."""
        return self.parts.needed <= self.capacity

    def __str__(self) -> str:
        text = f"an estimated {format_bytes(self.parts.total)} ({self.device} has {format_bytes(self.capacity)})"
        return f"{text} during {self.phase}: {self.parts}" + ("" if self.is_whole else f"; {UNCOUNTED}")

    def as_json(self) -> dict[str, Any]:
        """Return the estimate in bytes, by part."""
        parts = {name: round(size) for name, size in self.parts._asdict().items()}
        rest = {"capacity": round(self.capacity), "device": self.device, "is_whole": self.is_whole}
        return {"phase": self.phase, **parts, "total": round(self.parts.total), **rest}


class _Models(NamedTuple):
    """The models of a stage."""

    base: ModelFootprint
    reward_models: float  # bytes of reward models with weights of their own
    further_members: int = 0  # adapters of reward runs beyond one for each


def estimate(
    spec: StageSpec, recipe: Recipe, base_path: str, longest: int, held_out: int, further_members: int = 0
) -> Estimate | None:
    """Return the peak memory of a stage, or None if it cannot be estimated for this base model.

    Args:
        spec: The stage.
        recipe: The recipe.
        base_path: Folder or Hub id of the base model.
        longest: Tokens of the longest row or prompt.
        held_out: Tokens of the longest held-out row; 0: none.
        further_members: Number of reward adapters beyond one for each reward run.
    """
    models = _load_footprints(spec, recipe, base_path)
    if models is None:
        return None
    models = models._replace(further_members=further_members)
    device = default_device()
    processes = max(recipe.launch.processes, distributed.world_size())
    base = models.base
    if recipe.launch.strategy == "fsdp" and processes > 1:  # its share of each layer, and the layer being called
        own = base.weights - base.layers * (1 - 1 / processes) + base.largest_layer
        base = base._replace(weights=own, mapped=0)
        models = models._replace(base=base)
    capacity = device_memory.memory_capacity(device) / (processes if device.type == "cpu" else 1)
    plan = None
    if spec.memory_model == "ppo":
        plan = _ppo_plan(recipe, models, longest, processes, device, capacity)
        phases = _ppo_phases(recipe, models, longest, processes, device, plan)
    else:
        phases = _trl_phases(spec, recipe, base, _Rows(longest, held_out), processes, device)
    phase, parts = max(phases, key=lambda item: item[1].total)
    return Estimate(phase, parts, capacity, device.type, base.is_traced, plan)


def trainable_parameters(spec: StageSpec, recipe: Recipe, base_path: str) -> dict[str, int]:
    """Return the number of parameters that a stage trains, by module name; empty if they cannot be counted."""
    try:
        found = footprint.count_trainable(recipe.base, recipe.adapter, base_path)
        hidden = loading.read_model_sizes(base_path, recipe.base.revision).hidden or 0
    except Exception:  # as in `_load_footprints`
        return {}
    if spec.model_class == "scorer":
        found.pop("lm_head", None)
        found["score"] = hidden
    if spec.memory_model == "ppo":
        own_adapter = sum(found.values()) if recipe.ppo.critic.kind == "adapter" else 0
        found["critic"] = hidden + own_adapter
    return found


def _load_footprints(spec: StageSpec, recipe: Recipe, base_path: str) -> _Models | None:
    try:
        # PPO batches rows of equal length without a mask.
        rows = 1
        if spec.memory_model == "trl":
            rows = getattr(recipe, spec.section).micro_batch_size * spec.sequences_per_row
        padded = rows > 1 and not recipe.base.attention.startswith("flash")
        base = footprint.measure_footprint(recipe.base, recipe.adapter, base_path, padded=padded)
        sources = recipe.ppo.reward if spec.memory_model == "ppo" else []
        reward_models = sum(_scorer_bytes(recipe, s.model, s.revision) for s in sources if s.model is not None)
    except Exception:  # an architecture may fail in any way; loading it will raise the real error
        return None
    return _Models(base, reward_models)


def _scorer_bytes(recipe: Recipe, source: str, revision: str | None) -> float:
    """Return the bytes of a reward model with weights of its own, which is never quantized."""
    update = {"model": source, "revision": revision or "main", "quantize": "none"}
    return footprint.measure_reward_model(recipe.base.model_copy(update=update))


def _moments(optimizer: str) -> float:
    """Return the float32 numbers that an optimizer keeps per trained number; 0 if unknown."""
    if optimizer.startswith(("adamw_8bit", "adamw_bnb_8bit")):
        return 0.5
    if optimizer.startswith("adamw"):
        return 2
    return 1 if optimizer.startswith("lion_32bit") else 0


def _ppo_plan(
    recipe: Recipe, models: _Models, prompt: int, processes: int, device: torch.device, capacity: float
) -> PPOPlan:
    """Decide the rows of a rollout's batch by the bytes of their cache, and whether to recompute activations."""
    settings, base = recipe.ppo, models.base
    recompute = settings.trainer.get("activation_checkpointing")
    if not base.is_traced:
        tokens = ROLLOUT_TOKENS * settings.micro_batch_tokens
        return PPOPlan(tokens, device.type != "cpu" if recompute is None else bool(recompute))
    rest = _ppo_rest(recipe, models, device)
    reading, drawing = (parts.total - rest.total for _, parts in _rollout(rest, recipe, base, prompt, 1, device))
    free = max(capacity - rest.needed, 0.0)
    rows = max(1, int(ROLLOUT_SHARE * free / max(reading, drawing, 1.0)))
    plan = PPOPlan(rows * (prompt + settings.max_new_tokens), recompute=False)
    if recompute is None and device.type != "cpu":  # a CPU has the memory but not the time
        peak = max(parts.needed for _, parts in _ppo_phases(recipe, models, prompt, processes, device, plan))
        recompute = peak > RECOMPUTE_SHARE * capacity
    return plan._replace(recompute=bool(recompute))


def _ppo_rest(recipe: Recipe, models: _Models, device: torch.device) -> MemoryBreakdown:
    """Return the memory that is alive in every phase of PPO."""
    settings, base = recipe.ppo, models.base
    trained = _ppo_trained(recipe, base)
    return _ppo_weights(recipe, models, trained)._replace(
        training=_moments(settings.trainer.get("optim", "adamw")) * trained,
        activations=base.saved_activations.fixed,
        copies=trained if device.type == "cpu" else 0.0,
        mapped=base.mapped,
    )


def _ppo_trained(recipe: Recipe, base: ModelFootprint) -> float:
    """Return the bytes of the parameters of policy and critic, in float32."""
    return base.trainable * 2 if recipe.ppo.critic.kind == "adapter" else base.trainable


def _token_bytes(base: ModelFootprint) -> float:
    """Return the bytes of one token on its way through a layer without gradients."""
    return FORWARD * base.widest_activation + 3 * base.hidden_state


def _rollout(
    rest: MemoryBreakdown, recipe: Recipe, base: ModelFootprint, prompt: int, rows: int, device: torch.device
) -> Iterator[tuple[str, MemoryBreakdown]]:
    """Yield the two phases of a rollout's batch: reading the prompts, and drawing the last token."""
    width = prompt + recipe.ppo.max_new_tokens
    reading = rest.activations + rows * prompt * (_token_bytes(base) + prompt * (1 + base.itemsize))  # with its mask
    # On a CPU torch copies a 16-bit output layer once per row if the last of several tokens are read.
    copies_head = device.type == "cpu" and base.itemsize < FLOAT32
    copied_head = rows * base.hidden_state * base.vocab_size if copies_head else 0
    yield "rollout", rest._replace(activations=reading, cache=rows * prompt * base.kv_cache, logits=copied_head)
    drawn = DRAWS * FLOAT32 * rows * base.vocab_size
    yield "rollout", rest._replace(cache=rows * width * base.kv_cache, logits=drawn)


def _ppo_phases(
    recipe: Recipe, models: _Models, prompt: int, processes: int, device: torch.device, plan: PPOPlan
) -> Iterator[tuple[str, MemoryBreakdown]]:
    """Yield the phases of a PPO iteration; `prompt`: tokens of the longest prompt."""
    settings, base = recipe.ppo, models.base
    has_own_critic = settings.critic.kind == "adapter"
    trained, rest = _ppo_trained(recipe, base), _ppo_rest(recipe, models, device)
    width = prompt + settings.max_new_tokens
    completions = math.ceil(settings.rollout_batch_size * settings.samples_per_prompt / processes)
    yield from _rollout(rest, recipe, base, prompt, _rows_of(plan.rollout_tokens, width, completions), device)

    rows = _rows_of(settings.micro_batch_tokens, width, completions)
    yield "scoring", rest._replace(activations=rest.activations + rows * width * _token_bytes(base))
    logits = _chunk_bytes(base, device, rows * settings.max_new_tokens, CHUNK_COPIES)
    yield "scoring", rest._replace(activations=rest.activations + rows * width * base.hidden_state, logits=logits)

    minibatch = math.ceil(completions / settings.minibatches)
    rows = _rows_of(settings.micro_batch_tokens, width, minibatch)
    earlier = trained if rows < minibatch else 0.0  # gradients of the micro-batches before
    saved = (base.checkpointed_activations if plan.recompute else base.saved_activations).total(rows, width)
    # Hidden states that predict response tokens, and their gradients.
    saved += 3 * base.hidden_state * rows * settings.max_new_tokens
    in_layer = BACKWARD * base.widest_activation * rows * width
    copies = CHUNK_COPIES + 1 if settings.entropy_coef > 0 else CHUNK_COPIES
    logits = _chunk_bytes(base, device, rows * settings.max_new_tokens, copies)
    # The gradient of the output head is summed over chunks.
    started = rest._replace(training=rest.training + earlier + 2 * base.embedding_gradient)
    yield "update", started._replace(activations=saved, logits=logits)
    yield "update", started._replace(activations=saved + in_layer)
    policy_gradients = max(earlier, base.trainable) if has_own_critic else earlier
    yield "update", rest._replace(training=rest.training + policy_gradients, activations=saved + in_layer)
    gradients = 2 * trained if processes > 1 else trained  # and the buffer of the all-reduce
    yield "update", rest._replace(training=rest.training + gradients)
    if device.type == "cpu":  # a copy of the weights, and one of all that is written
        yield "saving", rest._replace(copies=rest.copies + 2 * trained + rest.training)


def _ppo_weights(recipe: Recipe, models: _Models, trained: float) -> MemoryBreakdown:
    """Return the weights and adapters of policy, reference, critic and reward models."""
    settings, base = recipe.ppo, models.base
    has_own_critic = settings.critic.kind == "adapter"
    reward_runs = sum(source.run is not None for source in settings.reward)
    if recipe.adapter is None:  # policy, reference and critic in float32, reward runs as loaded
        scorers = float(reward_runs)
        if has_own_critic and reward_runs:
            scorers += FLOAT32 / base.itemsize
        reference = FLOAT32 / base.itemsize
        weights, adapters = trained + base.weights * (reference + reward_runs) - base.output_head * scorers, 0.0
    else:
        roles = 1 + reward_runs + models.further_members  # the policy, and the reward runs with their members
        roles += 1 if has_own_critic else 0
        roles += 1 if settings.start != "base" else 0  # the reference
        weights, adapters = base.weights, base.trainable * roles
    return MemoryBreakdown(
        weights=weights + models.reward_models + base.largest_dequantized,
        adapters=adapters,
        training=0,
        activations=0,
        cache=0,
        logits=0,
        copies=0,
        mapped=0,
    )


class _Rows(NamedTuple):
    """Tokens of the longest row, in training and held out."""

    longest: int
    held_out: int


def _trl_phases(
    spec: StageSpec, recipe: Recipe, base: ModelFootprint, lengths: _Rows, processes: int, device: torch.device
) -> Iterator[tuple[str, MemoryBreakdown]]:
    """Yield the phases of a stage around a TRL trainer."""
    section, width = getattr(recipe, spec.section), lengths.longest
    has_lm_head = spec.model_class == "causal_lm"
    moments = _moments(section.trainer.get("optim", "adamw"))
    rows = section.micro_batch_size * spec.sequences_per_row
    whole = recipe.adapter is None
    weights = base.trainable if whole else base.weights
    if not has_lm_head:
        weights -= base.output_head * (FLOAT32 / base.itemsize if whole else 1)
    buckets = base.trainable if processes > 1 else 0.0  # of DDP
    rest = MemoryBreakdown(
        weights=weights + base.largest_dequantized,
        adapters=0.0 if whole else base.trainable,
        training=moments * base.trainable + buckets,
        activations=base.saved_activations.fixed,
        cache=0,
        logits=0,
        copies=0,
        mapped=base.mapped,
    )
    accumulates = section.batch_size > section.micro_batch_size * processes
    earlier = base.trainable if accumulates else 0.0
    recomputes = section.trainer.get("gradient_checkpointing", device.type == "cuda")
    saved = (base.checkpointed_activations if recomputes else base.saved_activations).total(rows, width)
    saved += 2 * base.hidden_state * rows * width
    in_layer = BACKWARD * base.widest_activation * rows * width
    # The output layer of a whole model gets its gradient first.
    head_gradient = base.embedding_gradient if has_lm_head else 0.0
    started = rest._replace(training=rest.training + earlier + head_gradient, activations=saved)
    yield "update", started._replace(activations=saved + in_layer)
    yield "update", rest._replace(training=rest.training + base.trainable)
    if has_lm_head:
        tile = min(rows * width, TILE[0]) * min(base.vocab_size, TILE[1])
        plain_kernel = 0 if device.type in ("cuda", "xpu") else FLOAT32 * TILE_COPIES + 1
        yield "update", started._replace(logits=tile * (base.itemsize + plain_kernel))
    if has_lm_head and lengths.held_out:  # the Trainer returns float32, and cross entropy makes a copy
        numbers = min(section.micro_batch_size * width * base.vocab_size, held_out_metrics.MAX_LOGITS)
        yield "evaluation on held-out rows", rest._replace(logits=numbers * (base.itemsize + 2 * FLOAT32))
    if device.type == "cpu":
        yield "saving", rest._replace(copies=moments * base.trainable)


def _rows_of(tokens: int, width: int, limit: int) -> int:
    """Return how many rows of `width` fit a batch of `tokens` tokens: at least one, at most `limit`."""
    return max(1, min(tokens // width, limit))


def _chunk_bytes(base: ModelFootprint, device: torch.device, tokens: int, copies: int) -> float:
    """Return the bytes of the logits computed at a time: float32 copies, and one in a narrower dtype."""
    limit = CHUNK_LOGITS.get(device.type, CHUNK_LOGITS["cuda"])
    numbers = min(max(1, limit // base.vocab_size), tokens) * base.vocab_size
    narrow = base.itemsize if base.itemsize < FLOAT32 else 0
    return numbers * (FLOAT32 * copies + narrow)
