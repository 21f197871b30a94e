"""Update policy and critic on one minibatch: accumulate gradients over micro-batches, clip them and step.

The loss of each micro-batch is weighted by its share of the minibatch's response tokens, so that the split into
micro-batches changes only rounding. Policy and critic run their forward and backward passes one after the other (unless
they share hidden states), so that at most one graph is in memory.

With several processes each one takes its share of a minibatch's rows, and gradients and metrics are summed once at the
end. DistributedDataParallel would need the same number of backward passes on every process, which token budgets only
guarantee for a sharded base (`inference.batching.micro_batches`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf_cli import distributed
from rlhf_cli.errors import DivergedError
from rlhf_cli.inference.batching import MicroBatch, micro_batches
from rlhf_cli.inference.scoring import token_hidden, token_scores
from rlhf_cli.ppo import algorithm
from rlhf_cli.ppo.actor_critic import POLICY, VALUE, ActorCritic
from rlhf_cli.ppo.optimization import Optimization
from rlhf_cli.ppo.types import Demonstrations, Experience, GradientNorms, MinibatchStats
from rlhf_cli.recipe.schema import Ppo

SHARED_VALUE_WEIGHT = 0.1  # of the value loss on shared hidden states, as in TRL and lm-human-preferences


def accumulate_gradients(
    actor_critic: ActorCritic,
    settings: Ppo,
    experience: Experience,
    rows: Sequence[int],
    *,
    pad_id: int,
    kl_coef: float,
    train_policy: bool = True,
) -> MinibatchStats:
    """Accumulate this process's share of a minibatch's gradients; `optimizer_step` all-reduces them.

    Args:
        actor_critic: Policy and critic.
        settings: The recipe's PPO settings.
        experience: The scored rollout; every process holds all of it.
        rows: The minibatch, as rows of the experience.
        pad_id: The id to pad with.
        kl_coef: Coefficient of KL in the loss, per nat and token; used only if the recipe charges KL in the loss.
        train_policy: Whether to compute the policy's gradients, too; otherwise only the critic's.

    Returns:
        The metrics of the whole minibatch.
    """
    token_count = sum(len(experience.responses[i]) for i in rows)
    rows = rows[distributed.rank() :: distributed.world_size()]
    prompts, responses = [experience.prompts[i] for i in rows], [experience.responses[i] for i in rows]
    model = actor_critic.model
    means = [torch.zeros(6, device=model.device)]  # (6,) per micro-batch, weighted
    ranges = [torch.tensor([torch.inf, -torch.inf], device=model.device)]  # (2,) per micro-batch
    max_tokens = settings.micro_batch_tokens
    for batch in micro_batches(prompts, responses, pad_id=pad_id, max_tokens=max_tokens, model=model):
        share = len(batch.tokens) / token_count
        old = _flatten_valid_tokens(experience, [rows[i] for i in batch.rows])
        policy, value = _backward(actor_critic, settings, batch, old, share, kl_coef, train_policy=train_policy)
        if policy is None:
            policy = algorithm.PolicyLoss(torch.zeros_like(value.loss), _identity_stats(value.loss))
        stats = policy.stats
        metrics = [policy.loss.detach(), value.loss.detach(), stats.clip_fraction, value.stats.clip_fraction]
        means.append(share * torch.stack([*metrics, stats.approx_kl, stats.ratio_mean]))
        ranges.append(torch.stack([stats.ratio_min, stats.ratio_max]))
    low, high = torch.stack(ranges).unbind(dim=1)
    local = torch.cat([torch.stack(means).sum(dim=0), low.amin(dim=0, keepdim=True), high.amax(dim=0, keepdim=True)])
    # One transfer from the device and one message for all metrics.
    *mean_parts, minima, maxima = zip(*distributed.all_gather_object(local.tolist()), strict=True)
    return MinibatchStats._make([*map(sum, mean_parts), min(minima), max(maxima)])


def ptx_loss(actor_critic: ActorCritic, settings: Ppo, demonstrations: Demonstrations, *, pad_id: int) -> float:
    """Accumulate this process's share of the gradients of the pretraining loss (PPO-ptx).

    The loss is ptx_coef · (−log p of the completions, a mean over their tokens).

    Returns:
        The mean over the tokens of all processes, in nats, without ptx_coef.
    """
    model = actor_critic.model
    token_count = sum(map(len, demonstrations.completions))
    local_rows = slice(distributed.rank(), None, distributed.world_size())
    total = 0.0
    for batch in micro_batches(
        demonstrations.prompts[local_rows],
        demonstrations.completions[local_rows],
        pad_id=pad_id,
        max_tokens=settings.micro_batch_tokens,
        model=model,
    ):
        with model.use(POLICY):
            hidden = token_hidden(model, POLICY, batch)  # (N, H)
            logprobs = token_scores(model, POLICY, hidden, batch.tokens, 1.0, with_entropy=False).logprobs  # (N,)
            loss = -logprobs.sum() / token_count
            (settings.ptx_coef * loss).backward()
        total += float(loss.detach())
    return sum(distributed.all_gather_object(total))


def optimizer_step(optimization: Optimization) -> GradientNorms:
    """Sum gradients over processes, clip policy and critic by their own norms, and take an optimizer step.

    Raises:
        DivergedError: A gradient is not finite. The weights are unchanged.
    """
    optimizer = optimization.optimizer
    _all_reduce_gradients([p for group in optimizer.param_groups for p in group["params"]])
    norms = GradientNorms(*(_clip(group["params"], optimization.max_grad_norm) for group in optimizer.param_groups))
    for name, norm in norms._asdict().items():
        if not norm < float("inf"):
            raise DivergedError(
                "training.non-finite",
                f"gradient norm of the {name}: must be finite; found {norm}.",
                location="ppo",
                hint="Lower the learning rate.",
            )
    optimizer.step()
    optimization.schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return norms


def _backward(
    actor_critic: ActorCritic,
    settings: Ppo,
    batch: MicroBatch,
    old: Experience,
    share: float,
    kl_coef: float,
    *,
    train_policy: bool,
) -> tuple[algorithm.PolicyLoss | None, algorithm.ValueLoss]:
    """Backpropagate both losses of one micro-batch, over (1, N) tokens.

    Backward passes run inside `use`: one that recomputes activations needs the adapter of its forward pass.

    Returns:
        The policy loss, or None without `train_policy`, and the value loss.
    """
    model = actor_critic.model
    policy = None
    if actor_critic.is_shared:
        with model.use(POLICY):
            with torch.set_grad_enabled(train_policy):
                hidden = token_hidden(model, POLICY, batch)  # (N, H)
            value = _value_loss(actor_critic, settings, hidden, old)
            loss = value.loss
            if train_policy:
                policy, total_loss = _policy_loss(actor_critic, settings, batch, hidden, old, kl_coef)
                loss = total_loss + SHARED_VALUE_WEIGHT * value.loss
            (loss * share).backward()
        return policy, value
    if train_policy:
        with model.use(POLICY):
            hidden = token_hidden(model, POLICY, batch)  # (N, H)
            policy, total_loss = _policy_loss(actor_critic, settings, batch, hidden, old, kl_coef)
            (total_loss * share).backward()
            del hidden, total_loss
    with model.use(actor_critic.trunk):
        hidden = token_hidden(model, actor_critic.trunk, batch)  # (N, H)
        value = _value_loss(actor_critic, settings, hidden, old)
        (value.loss * share).backward()
    return policy, value


def _policy_loss(
    actor_critic: ActorCritic, settings: Ppo, batch: MicroBatch, hidden: Tensor, old: Experience, kl_coef: float
) -> tuple[algorithm.PolicyLoss, Tensor]:
    """Return the clipped surrogate, and the total loss: with the entropy bonus, and KL if it is charged in the loss."""
    with_entropy = settings.entropy_coef > 0
    scores = token_scores(
        actor_critic.model, POLICY, hidden, batch.tokens, settings.temperature, with_entropy=with_entropy
    )  # (N,) each
    clip_high = settings.clip if settings.clip_high is None else settings.clip_high
    policy = algorithm.policy_loss(
        scores.logprobs[None], old.logprobs, old.advantages, old.mask, settings.clip, clip_high, settings.dual_clip
    )
    total = policy.loss
    if with_entropy:
        total = total - settings.entropy_coef * scores.entropy.mean()
    if settings.kl.apply_to == "loss":
        kl = algorithm.kl_estimate(scores.logprobs[None], old.ref_logprobs, settings.kl.estimator)
        total = total + kl_coef * kl.mean()
    return policy, total


def _value_loss(actor_critic: ActorCritic, settings: Ppo, hidden: Tensor, old: Experience) -> algorithm.ValueLoss:
    values = actor_critic.scale_values(actor_critic.model.heads[VALUE](hidden))  # (N,)
    return algorithm.value_loss(values[None], old.values, old.returns, old.mask, settings.value_clip)


def _identity_stats(like: Tensor) -> algorithm.PolicyStats:
    """Return the stats of a policy that is not trained: every ratio is 1."""
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    return algorithm.PolicyStats(zero, zero, one, one, one)


def _flatten_valid_tokens(experience: Experience, rows: list[int]) -> Experience:
    """Return the valid tokens of `rows` as one row (1, N), in the order of the micro-batch."""
    width = experience.mask.shape[1]
    # Positions are known on the host; a boolean mask would make the device wait for each selection.
    slots = [row * width + torch.arange(len(experience.responses[row])) for row in rows]
    index = torch.cat(slots).to(experience.mask.device)
    names = ("mask", "logprobs", "ref_logprobs", "values", "advantages", "returns")
    return experience._replace(**{name: getattr(experience, name).flatten()[index][None] for name in names})


def _all_reduce_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their sum over all processes. A process without rows does not have gradients of its own."""
    if distributed.world_size() == 1:
        return
    has_gradient = torch.tensor(
        [parameter.grad is not None for parameter in parameters], dtype=torch.float32, device=parameters[0].device
    )
    distributed.all_reduce_sum([has_gradient])
    reduced = [parameter for parameter, count in zip(parameters, has_gradient.tolist(), strict=True) if count]
    for parameter in reduced:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    distributed.all_reduce_sum([parameter.grad for parameter in reduced if parameter.grad is not None])


def _clip(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Clip gradients to `max_norm` if it is positive. Return their norm before clipping."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    return float(nn.utils.clip_grad_norm_(with_gradient, max_norm if max_norm > 0 else float("inf")))
