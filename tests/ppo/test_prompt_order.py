"""Test the order of prompts."""

from __future__ import annotations

from rlhf_cli.ppo.prompt_order import PromptOrder


def test_prompt_order_take_serves_every_prompt_once_per_epoch() -> None:
    order = PromptOrder(10, seed=3)
    taken = [i for _ in range(5) for i in order.take(4)]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]


def test_prompt_order_same_seed_gives_same_order() -> None:
    assert PromptOrder(10, seed=3).take(20) == PromptOrder(10, seed=3).take(20)
    assert PromptOrder(10, seed=3).take(20) != PromptOrder(10, seed=4).take(20)


def test_prompt_order_batch_size_does_not_change_order() -> None:
    order = PromptOrder(10, seed=3)
    assert [i for _ in range(5) for i in order.take(4)] == PromptOrder(10, seed=3).take(20)


def test_prompt_order_restored_served_continues() -> None:
    resumed = PromptOrder(10, seed=3)
    resumed.served = 8
    assert resumed.take(4) == PromptOrder(10, seed=3).take(12)[8:]
