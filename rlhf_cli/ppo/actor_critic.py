"""Who plays what on the one base in memory: policy, reference, reward and critic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_cli.errors import ModelError
from rlhf_cli.models.heads import HEAD_KEY, ScalarHead
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Critic
from rlhf_cli.rewards.build import RewardFunction

POLICY, REFERENCE, VALUE = "policy", "reference", "value"


class ActorCritic(NamedTuple):
    """The critic is the head VALUE on the hidden states of role `trunk`: its own adapter's, or the policy's."""

    bank: MultiAdapterModel
    trunk: str

    @property
    def is_shared(self) -> bool:
        return self.trunk == POLICY


def folders(
    start: Path | None, terms: Sequence[RewardFunction], reward_models: Sequence[Path]
) -> dict[str, Path | None]:
    """Roles to load: the reference is the policy's own start, None being the bare base."""
    scored = [term.role for term in terms if term.role is not None]
    return {POLICY: start, REFERENCE: start, **dict(zip(scored, reward_models, strict=True))}


def assign(bank: MultiAdapterModel, critic: Critic, terms: Sequence[RewardFunction]) -> ActorCritic:
    """Add the critic, and let gradients flow to policy and critic alone.

    kind adapter: a copy of the first reward run's adapter and head, which knows already what the score hangs on; with
    Python rewards alone, a copy of the policy's adapter with a head of zeros. kind shared: a head of zeros on the
    policy's trunk.
    """
    rewards = [term.role for term in terms if term.role is not None]
    for role in rewards:
        if role not in bank.heads:
            hint = "Name a run of the reward stage."
            raise ModelError(
                "this is no reward model: it has no score head.", location=f"ppo.reward ({role})", hint=hint
            )
    trunk = POLICY
    if critic.kind == "adapter":
        trunk = VALUE
        bank.add(VALUE, copy_of=rewards[0] if rewards else POLICY)
    if VALUE not in bank.heads:
        bank.heads[VALUE] = ScalarHead(bank.hidden_size).to(bank.device)
    bank.train([POLICY, VALUE])
    return ActorCritic(bank, trunk)


def copied(cast: ActorCritic) -> list[Tensor]:
    """What training moves, policy and critic, copied to main memory."""
    return [p.detach().to("cpu", copy=True) for p in _moved(cast)]


def restore(cast: ActorCritic, weights: Sequence[Tensor]) -> None:
    """Put back what `copied` gave."""
    for parameter, kept in zip(_moved(cast), weights, strict=True):
        parameter.data.copy_(kept)


def _moved(cast: ActorCritic) -> list[nn.Parameter]:
    return [*cast.bank.parameters(POLICY), *cast.bank.parameters(VALUE)]


def save_critic(cast: ActorCritic, folder: Path) -> None:
    """Write the critic as a scorer; where its trunk cannot be one, its head alone in a `head` folder.

    That is so on the policy's trunk, and for a whole language model's copy, whose trunk is saved as it is.
    """
    with cast.bank.use(cast.trunk) as model, cast.bank.use(REFERENCE) as other:
        is_whole = model is not other
        is_language_model = is_whole and not hasattr(model, "score")
    if not cast.is_shared and not is_language_model:
        cast.bank.save(VALUE, folder)
        return
    head = cast.bank.heads.pop(VALUE)
    try:
        if not cast.is_shared:
            cast.bank.save(VALUE, folder)
    finally:
        cast.bank.heads[VALUE] = head
    (folder / "head").mkdir(parents=True, exist_ok=True)
    weight: Tensor = next(head.parameters()).detach().cpu()[None]  # (1, H)
    save_file({HEAD_KEY: weight.contiguous()}, folder / "head" / "model.safetensors", metadata={"format": "pt"})
