"""Test PPO's arithmetic on numbers small enough to work by hand; comments show the working."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from rlhf_cli.ppo.algorithm import (
    AdaptiveKL,
    Estimator,
    PolicyLoss,
    explained_variance,
    gae,
    kl_estimate,
    policy_loss,
    shape_rewards,
    value_loss,
    whiten,
)

NAN = float("nan")


def close(got: torch.Tensor | None, expected: object, atol: float = 1e-6) -> None:
    """Assert that a tensor is close to a worked value."""
    assert got is not None
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


def mask(*rows: str) -> torch.Tensor:
    """Return a mask from rows such as "110", where 1 is a valid slot."""
    return torch.tensor([[c == "1" for c in row] for row in rows])


# ---- KL -------------------------------------------------------------------------------------------------------------


def test_kl_estimate_of_one_token_equals_worked_values() -> None:
    # The policy gives 1/2, the reference 1/4: d = ln 2.
    logprobs, ref = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    close(kl_estimate(logprobs, ref, "k1"), [[math.log(2)]])
    close(kl_estimate(logprobs, ref, "k2"), [[math.log(2) ** 2 / 2]])
    close(kl_estimate(logprobs, ref, "k3"), [[0.5 - 1 + math.log(2)]])


def test_kl_estimate_k1_and_k3_are_unbiased_and_k3_is_never_negative() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    true_kl = 0.7 * math.log(0.7 / 0.2) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.5)
    for estimator in ("k1", "k3"):
        each = kl_estimate(p.log()[None], q.log()[None], estimator)
        close((p * each).sum(), true_kl)
    assert (kl_estimate(p.log()[None], q.log()[None], "k3") >= 0).all()
    assert (kl_estimate(p.log()[None], q.log()[None], "k1") < 0).any()


@pytest.mark.parametrize(
    ("estimator", "apply_to", "of_reference"), [("k1", "reward", False), ("k2", "loss", False), ("k3", "loss", True)]
)
def test_kl_gradient_in_expectation_equals_autograd_of_exact_kl(
    estimator: Estimator, apply_to: str, of_reference: bool
) -> None:
    """Enumerate a softmax of 50 tokens, so that every expectation is a sum.

    k1 in the reward and k2 in the loss follow KL(policy ‖ reference), k3 in the loss KL(reference ‖ policy).
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator, dtype=torch.float64).requires_grad_()
    reference = (logits.detach() + 0.3 * torch.randn(50, generator=generator, dtype=torch.float64)).log_softmax(0)
    log_p = logits.log_softmax(0)
    p, q = log_p.exp(), reference.exp()
    exact = (q * (reference - log_p)).sum() if of_reference else (p * (log_p - reference)).sum()
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)

    rows, valid = log_p[:, None], torch.ones(50, 1, dtype=torch.bool)  # one token per row, each weighted by p
    kl = kl_estimate(rows, reference[:, None], estimator)
    if apply_to == "reward":
        advantages = shape_rewards(kl.detach(), torch.zeros(50), valid, coef=1.0)
        losses = [
            policy_loss(rows[i : i + 1], rows[i : i + 1].detach(), advantages[i : i + 1], valid[:1], 0.2, 0.2).loss
            for i in range(50)
        ]
        loss = (p.detach() * torch.stack(losses)).sum()
    else:
        loss = (p.detach() * kl[:, 0]).sum()
    (got,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_adaptive_kl_update_moves_coef_by_clipped_share_of_episodes() -> None:
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    controller.update(6.6, n=100)  # 10 % over target
    assert controller.coef == pytest.approx(0.1 * math.exp(0.1 * 100 / 1000) * math.exp(0.1))
    controller.update(60.0, n=100)  # ten times the target: errors of 0.6 and 3 at most
    assert controller.coef == pytest.approx(0.1 * math.exp(0.01 + 0.06) * math.exp(3))
    controller.update(0.0, n=500)  # −100 %: an error of −0.3 at least for the integral
    assert controller.coef == pytest.approx(0.1 * math.exp(0.01 + 0.06 - 0.15) * math.exp(-1))


@pytest.mark.parametrize("coef", [0.02, 0.2, 2.0])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_adaptive_kl_holds_target_in_a_short_run(coef: float, scale: float) -> None:
    """PPO on a softmax over 64 outcomes: with Ziegler's horizon of 10,000 episodes KL ends at up to eight targets."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(64, generator=generator).log_softmax(-1)
    rewards = scale * torch.randn(64, generator=generator)
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.03)
    rows, target, iterations = 128, 1.5, 60
    controller, divergences = AdaptiveKL(coef, target, 3 * rows), []
    for _ in range(iterations):
        with torch.no_grad():
            logprobs = logits.log_softmax(-1)
            drawn = torch.multinomial(logprobs.exp(), rows, replacement=True, generator=generator)
            log_ratio, old = logprobs[drawn] - reference[drawn], logprobs[drawn]
            shaped = rewards[drawn] - controller.coef * log_ratio
            advantages = (shaped - shaped.mean()) / shaped.std()
            divergences.append(float((logprobs.exp() * (logprobs - reference)).sum()))
        controller.update(float(log_ratio.mean()), n=rows)
        for _ in range(8):
            ratio = (logits.log_softmax(-1)[drawn] - old).exp()
            loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    last = divergences[-iterations // 4 :]
    assert sum(last) / len(last) == pytest.approx(target, rel=0.25)


# ---- rewards --------------------------------------------------------------------------------------------------------


def test_shape_rewards_ragged_rows_puts_score_on_last_valid_token() -> None:
    kl = torch.tensor([[1.0, 2.0, NAN], [3.0, 1.0, 2.0], [4.0, NAN, NAN]])
    shaped = shape_rewards(kl, torch.tensor([10.0, 20.0, 30.0]), mask("110", "111", "100"), coef=0.5)
    # The second row is full (its end token is in the last slot); the third is one token long.
    close(shaped, [[-0.5, 9.0, 0.0], [-1.5, -0.5, 19.0], [28.0, 0.0, 0.0]])


def test_shape_rewards_row_with_hole_puts_score_after_the_hole() -> None:
    shaped = shape_rewards(torch.ones(1, 4), torch.tensor([5.0]), mask("1010"), coef=1.0)
    close(shaped, [[-1.0, 0.0, 4.0, 0.0]])


# ---- advantages -----------------------------------------------------------------------------------------------------


def test_gae_three_tokens_equals_worked_values() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.5]])
    advantages, returns = gae(rewards, values, mask("111"), gamma=1.0, gae_lambda=0.5)
    # δ = (.25 − .5, .5 − .25, 1 − .5) = (−.25, .25, .5); A2 = .5, A1 = .25 + .25 = .5, A0 = −.25 + .25 = 0
    close(advantages, [[0.0, 0.5, 0.5]])
    close(returns, [[0.5, 0.75, 1.0]])


def test_gae_lambda_one_is_discounted_return_and_zero_is_td_error() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 5.0, 7.0]])
    # G2 = 4, G1 = 2 + .5·4 = 4, G0 = 1 + .5·4 = 3
    close(gae(rewards, values, mask("111"), gamma=0.5, gae_lambda=1.0).returns, [[3.0, 4.0, 4.0]])
    # δ0 = 1 + 2.5 − 3, δ1 = 2 + 3.5 − 5, δ2 = 4 − 7
    close(gae(rewards, values, mask("111"), gamma=0.5, gae_lambda=0.0).advantages, [[0.5, 0.5, -3.0]])


def test_gae_row_with_hole_and_tail_equals_row_without_them() -> None:
    dense = gae(torch.tensor([[0.0, 0.3, 1.0]]), torch.tensor([[0.5, 0.25, 0.5]]), mask("111"), 0.9, 0.8)
    holed = gae(
        torch.tensor([[0.0, NAN, NAN, 0.3, 1.0, NAN]]),
        torch.tensor([[0.5, NAN, 99.0, 0.25, 0.5, NAN]]),
        mask("100110"),
        0.9,
        0.8,
    )
    for got, expected in zip(holed, dense, strict=True):
        close(got[:, [0, 3, 4]], expected)
        close(got[:, [1, 2, 5]], [[0.0, 0.0, 0.0]])


def test_gae_one_token_response_among_longer_ones_is_independent() -> None:
    advantages, returns = gae(
        torch.tensor([[2.0, NAN], [0.0, 1.0]]), torch.tensor([[0.5, NAN], [0.0, 0.0]]), mask("10", "11"), 1.0, 1.0
    )
    close(advantages, [[1.5, 0.0], [1.0, 1.0]])
    close(returns, [[2.0, 0.0], [1.0, 1.0]])


# ---- whitening ------------------------------------------------------------------------------------------------------


def test_whiten_masked_slots_are_ignored_and_variance_is_unbiased() -> None:
    x = torch.tensor([[1.0, 3.0, NAN], [5.0, NAN, 1e9]])
    # 1, 3, 5: mean 3, unbiased variance 4
    close(whiten(x, mask("110", "100")), [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])


def test_whiten_without_center_keeps_the_mean() -> None:
    x = torch.tensor([[1.0, 3.0, NAN], [5.0, NAN, 1e9]])
    close(whiten(x, mask("110", "100"), center=False), [[2.0, 3.0, 0.0], [4.0, 0.0, 0.0]])


def test_whiten_single_valid_token_is_zero() -> None:
    close(whiten(torch.tensor([[7.0, NAN]]), mask("10")), [[0.0, 0.0]])
    close(whiten(torch.tensor([[7.0, NAN]]), mask("10"), center=False), [[7.0, 0.0]])


def test_whiten_over_two_processes_equals_one_process(tmp_path: Path) -> None:
    spawn(_whiten_half, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    close(torch.cat(halves), whiten(_SPREAD, _SPREAD_MASK))


_SPREAD, _SPREAD_MASK = torch.tensor([[1.0, 2.0, 9.0], [4.0, NAN, NAN]]), mask("111", "100")


def _whiten_half(rank: int, store: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(whiten(_SPREAD[rank : rank + 1], _SPREAD_MASK[rank : rank + 1]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


# ---- policy loss ----------------------------------------------------------------------------------------------------


def policy(
    ratios: list[list[float]],
    advantages: list[list[float]],
    valid: torch.Tensor,
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
) -> PolicyLoss:
    """Return the policy loss for probability ratios new / old."""
    old = torch.zeros(len(ratios), len(ratios[0]))
    return policy_loss(torch.tensor(ratios).log(), old, torch.tensor(advantages), valid, low, high, dual)


def test_policy_loss_takes_the_worse_surrogate() -> None:
    # r·A against clip(r)·A, the lesser: 1.5 → 1.2 (A=1); .5 → .5 (A=1); 1.5·−1 → −1.5; .5·−1 → −.8
    loss, stats = policy([[1.5, 0.5, 1.5, 0.5]], [[1.0, 1.0, -1.0, -1.0]], mask("1111"))
    close(loss, -(1.2 + 0.5 - 1.5 - 0.8) / 4)
    close(stats.clip_fraction, 0.5)  # only the first and the last


def test_clip_fraction_equal_or_better_clipped_surrogate_is_not_counted() -> None:
    # Outside the bounds, but the pessimistic minimum is the free surrogate; and A = 0, for which both are 0.
    close(policy([[0.5, 1.5, 1.5]], [[1.0, -1.0, 0.0]], mask("111")).stats.clip_fraction, 0.0)


def test_policy_loss_asymmetric_clip_uses_both_bounds() -> None:
    loss, _ = policy([[1.5, 0.5]], [[1.0, -2.0]], mask("11"), low=0.1, high=0.3)
    close(loss, -(1.3 - 1.8) / 2)


def test_dual_clip_bounds_only_tokens_with_negative_advantage() -> None:
    plain, bounded = (policy([[10.0, 10.0]], [[-1.0, 1.0]], mask("11"), dual=c).loss for c in (None, 3.0))
    close(plain, (10.0 - 1.2) / 2)
    close(bounded, (3.0 - 1.2) / 2)


def test_policy_stats_are_over_valid_tokens_only() -> None:
    _, stats = policy([[2.0, 0.25, 7.0]], [[1.0, 1.0, 1.0]], mask("110"))
    close(stats.approx_kl, ((2 - 1 - math.log(2)) + (0.25 - 1 + math.log(4))) / 2)
    close(torch.stack([stats.ratio_mean, stats.ratio_min, stats.ratio_max]), [1.125, 0.25, 2.0])


def test_policy_loss_is_mean_over_tokens_not_over_sequences() -> None:
    # Three tokens of loss −1 in one row, one token of loss −3 in the other: −6/4; a mean of means would be −2.
    loss, _ = policy([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0], [3.0, 9.0, 9.0]], mask("111", "100"))
    close(loss, -1.5)


def test_losses_nan_in_masked_slots_reaches_neither_loss_nor_gradient() -> None:
    valid = mask("10")
    logprobs = torch.tensor([[-1.0, NAN]], requires_grad=True)
    loss, stats = policy_loss(logprobs, torch.tensor([[-1.0, NAN]]), torch.tensor([[2.0, NAN]]), valid, 0.2, 0.2, 3.0)
    loss.backward()
    close(loss.detach(), -2.0)
    close(logprobs.grad, [[-2.0, 0.0]])
    assert all(torch.isfinite(x) for x in stats)
    values = torch.tensor([[1.0, NAN]], requires_grad=True)
    value = value_loss(values, torch.tensor([[1.0, NAN]]), torch.tensor([[3.0, NAN]]), valid, 0.2).loss
    value.backward()
    close(value.detach(), 2.0)
    close(values.grad, [[-2.0, 0.0]])


def test_policy_loss_without_valid_token_is_zero() -> None:
    loss, stats = policy([[NAN]], [[NAN]], mask("0"))
    close(loss, 0.0)
    assert all(torch.isfinite(x) for x in stats)


# ---- value loss -----------------------------------------------------------------------------------------------------


def test_value_loss_takes_greater_of_free_and_clipped_error() -> None:
    # Old 0, clip .2. V=1, R=1: free 0, clipped (.2 − 1)² = .64. V=−1, R=1: free 4, clipped (−.2 − 1)² = 1.44.
    # V=.1, R=1: not clipped, .81.
    loss, stats = value_loss(
        torch.tensor([[1.0, -1.0, 0.1]]), torch.zeros(1, 3), torch.ones(1, 3), mask("111"), clip=0.2
    )
    close(loss, 0.5 * (0.64 + 4.0 + 0.81) / 3)
    close(stats.clip_fraction, 1 / 3)


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_explained_variance_equals_worked_values() -> None:
    returns = torch.tensor([[1.0, 3.0, NAN]])
    valid = mask("110")
    close(explained_variance(torch.tensor([[1.0, 3.0, NAN]]), returns, valid), 1.0)
    close(explained_variance(torch.tensor([[9.0, 9.0, 9.0]]), returns, valid), 0.0)  # a constant explains nothing
    # V = (1, 2): R − V = (0, 1), variance ¼, against Var(R) = 1
    close(explained_variance(torch.tensor([[1.0, 2.0, 0.0]]), returns, valid), 0.75)


def test_explained_variance_constant_returns_is_finite() -> None:
    close(explained_variance(torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 2.0]]), mask("11")), 0.0)
    close(explained_variance(torch.tensor([[1.0]]), torch.tensor([[2.0]]), mask("1")), 1.0)
