"""Combine the scores of a reward ensemble's members (Coste et al. 2023, arXiv:2310.02743).

Shapes: M members, B completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf_cli.inference import scoring
from rlhf_cli.models.ensemble import read_members
from rlhf_cli.models.multi_adapter import MultiAdapterModel

Combine = Literal["mean", "min", "uncertainty"]
UNCERTAINTY_WEIGHT = 0.1  # of the variance, in 1/score; the paper's value for PPO


class RewardEnsemble(NamedTuple):
    """The members of a reward run as roles of the policy's model. A run that is no ensemble has one.

    Attributes:
        folders: Role to folder of its adapter, in the order of the members.
        offsets: Added to the scores of each member, so that their zeros agree.
        combine: How the members' scores become one.
    """

    folders: dict[str, Path]
    offsets: tuple[float, ...]
    combine: Combine

    @property
    def size(self) -> int:
        """The number M of members."""
        return len(self.offsets)


class EnsembleScores(NamedTuple):
    """The scores of B completions."""

    combined: Tensor  # (B,)
    disagreement: Tensor  # (B,) standard deviation over the members


def find_ensemble(role: str, folder: Path, combine: Combine) -> RewardEnsemble:
    """Return the members of the reward model in `folder` as roles: `role`, `<role>_member_2`, and so on.

    Raises:
        ModelError: The list of members is damaged.
    """
    members = read_members(folder)
    roles = [role, *(f"{role}_member_{number}" for number in range(2, len(members) + 1))]
    folders = {name: member.folder for name, member in zip(roles, members, strict=True)}
    return RewardEnsemble(folders, tuple(member.offset for member in members), combine)


def score_sequences(
    model: MultiAdapterModel, ensemble: RewardEnsemble, sequences: list[list[int]], *, pad_id: int, max_tokens: int
) -> EnsembleScores:
    """Score token sequences with every member, and combine the scores. Arguments: `member_scores`."""
    scores = member_scores(model, ensemble, sequences, pad_id=pad_id, max_tokens=max_tokens)
    return combine_scores(scores, ensemble.combine)


def member_scores(
    model: MultiAdapterModel, ensemble: RewardEnsemble, sequences: list[list[int]], *, pad_id: int, max_tokens: int
) -> Tensor:
    """Return the score of each token sequence by each member, with the same zero: -> (M, B).

    Args:
        model: The model whose roles are the members.
        ensemble: The members.
        sequences: Token ids of the B sequences.
        pad_id: The id to pad with.
        max_tokens: Tokens of a forward pass, padding included.
    """
    scores = [
        scoring.final_scores(model, role, sequences, pad_id=pad_id, max_tokens=max_tokens) + offset
        for role, offset in zip(ensemble.folders, ensemble.offsets, strict=True)
    ]
    return torch.stack(scores)


def combine_scores(scores: Tensor, combine: Combine) -> EnsembleScores:
    """Combine the members' scores, (M, B).

    mean: the mean (section 3.1). min: worst-case optimization (eq. 2). uncertainty: the mean minus a tenth of the
    variance among the members (eq. 3).
    """
    mean = scores.mean(dim=0)
    variance = (scores - mean).square().mean(dim=0)  # over all members: they are not a sample of more
    combined = {
        "mean": mean,
        "min": scores.amin(dim=0),
        "uncertainty": mean - UNCERTAINTY_WEIGHT * variance,
    }[combine]
    return EnsembleScores(combined, variance.sqrt())


def member_offsets(scores: Sequence[Sequence[float]]) -> list[float]:
    """Return the offset of each member that moves its mean to the first one's, given all scores of some sequences."""
    means = [sum(values) / len(values) for values in scores]
    return [means[0] - mean for mean in means]
