"""Build policy, reference, reward and critic on one base model, and snapshot and save the trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_cli.errors import ModelError
from rlhf_cli.models.heads import HEAD_KEY, ScalarHead
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.ppo.algorithm import RunningMoments
from rlhf_cli.recipe.schema import Ppo
from rlhf_cli.rewards.build import RewardFunction

POLICY, REFERENCE, VALUE = "policy", "reference", "value"  # roles; VALUE is also the name of the critic's head


class ActorCritic(NamedTuple):
    """Policy and critic on one model."""

    model: MultiAdapterModel
    trunk: str  # the role whose hidden states the head VALUE reads: VALUE, or POLICY if the critic shares them
    reward_moments: RunningMoments | None = None  # given if the head predicts rewards before they are normalized

    @property
    def is_shared(self) -> bool:
        """Whether the critic shares the policy's hidden states."""
        return self.trunk == POLICY

    def scale_values(self, values: Tensor) -> Tensor:
        """Return what the head VALUE predicted, on the scale of the rewards that PPO learns from."""
        return values if self.reward_moments is None else self.reward_moments.normalize(values)


def role_folders(start: Path | None, reward_functions: Sequence[RewardFunction]) -> dict[str, Path | None]:
    """Return the directory of each role to load; None is the bare base. The reference starts like the policy.

    Args:
        start: The directory that the policy starts from, or None for the base.
        reward_functions: The reward functions; the members of reward runs are roles.
    """
    folders: dict[str, Path | None] = {POLICY: start, REFERENCE: start}
    for function in reward_functions:
        folders |= {} if function.ensemble is None else function.ensemble.folders
    return folders


def build_actor_critic(
    model: MultiAdapterModel, settings: Ppo, reward_functions: Sequence[RewardFunction]
) -> ActorCritic:
    """Add the critic to the model, and make only policy and critic trainable.

    A critic of kind adapter is a copy of a reward run's adapter and head, which already predicts the reward: of the run
    with the largest weight, by which the head is scaled; of an ensemble, those of its first member. If rewards are
    normalized, its values are, too. Without a reward run the critic is a copy of the policy's adapter with a head of
    zeros. A critic of kind shared is a head of zeros on the policy's hidden states.

    Args:
        model: The model with the policy, the reference and the reward runs.
        settings: The recipe's PPO settings.
        reward_functions: All reward functions.

    Raises:
        ModelError: A reward run does not have a score head.
    """
    reward_weights = {role: function.weight for function in reward_functions for role in function.roles}
    for role in reward_weights:
        if role not in model.heads:
            raise ModelError(
                "model.not-a-reward-model",
                "score head: not found; expected a reward model.",
                location=f"ppo.reward ({role})",
                hint="Use a run of the reward stage.",
            )
    trunk, moments = POLICY, None
    if settings.critic.kind == "adapter":
        trunk = VALUE
        source = max(reward_weights, key=lambda role: abs(reward_weights[role]), default=POLICY)
        model.add(VALUE, copy_of=source)
        if source != POLICY:
            with torch.no_grad():
                next(model.heads[VALUE].parameters()).mul_(reward_weights[source])
            moments = RunningMoments() if settings.normalize_reward else None
    if VALUE not in model.heads:
        model.heads[VALUE] = ScalarHead(model.hidden_size).to(model.device)
    # The reference in the policy's precision: in bfloat16 its log-probabilities differ by up to 0.2 nats.
    model.set_trainable([POLICY, VALUE], in_float32=[REFERENCE])
    return ActorCritic(model, trunk, moments)


def snapshot_weights(actor_critic: ActorCritic) -> list[Tensor]:
    """Return a copy of all trained weights of policy and critic, in main memory."""
    return [parameter.detach().to("cpu", copy=True) for parameter in _trainable_parameters(actor_critic)]


def restore_weights(actor_critic: ActorCritic, weights: Sequence[Tensor]) -> None:
    """Restore weights from `snapshot_weights`."""
    for parameter, saved in zip(_trainable_parameters(actor_critic), weights, strict=True):
        parameter.data.copy_(saved)


def save_critic(actor_critic: ActorCritic, folder: Path) -> None:
    """Write the critic as a scorer, or only its head into a `head` subdirectory if it cannot be a scorer.

    It cannot if it shares the policy's hidden states, or if it is a whole language model; the latter is saved, too.
    """
    model = actor_critic.model
    with model.use(actor_critic.trunk) as critic, model.use(REFERENCE) as reference:
        is_whole = critic is not reference
        is_language_model = is_whole and not hasattr(critic, "score")
    if not actor_critic.is_shared and not is_language_model:
        model.save(VALUE, folder)
        return
    head = model.heads.pop(VALUE)
    try:
        if not actor_critic.is_shared:
            model.save(VALUE, folder)
    finally:
        model.heads[VALUE] = head
    (folder / "head").mkdir(parents=True, exist_ok=True)
    weight: Tensor = next(head.parameters()).detach().cpu()[None]  # (1, H)
    save_file({HEAD_KEY: weight.contiguous()}, folder / "head" / "model.safetensors", metadata={"format": "pt"})


def _trainable_parameters(actor_critic: ActorCritic) -> list[nn.Parameter]:
    model = actor_critic.model
    return [*model.parameters(POLICY), *model.parameters(VALUE)]
