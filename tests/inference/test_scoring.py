"""Test scores of token sequences: padding and batching change nothing, and they equal the library's own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_cli.inference import scoring
from rlhf_cli.ppo.actor_critic import POLICY, VALUE
from tests.support.tiny_policy import EOS, PAD, MakeActorCritic, Ragged

ATOL = 1e-5  # float32 log-probabilities of order 10, summed in another order


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Assert that two tensors are equal up to the order of summation."""
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


def test_token_logprobs_equal_plain_forward_of_each_row(
    make_actor_critic: MakeActorCritic, base_folder: Path, sft_folder: Path, ragged: Ragged
) -> None:
    prompts, responses = ragged
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), sft_folder).eval()
    model = make_actor_critic(sft_folder).model
    found = scoring.token_logprobs(model, POLICY, prompts, responses, pad_id=PAD, temperature=0.7, max_tokens=40)
    for prompt, response, logprobs in zip(prompts, responses, found, strict=True):
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / 0.7, dim=-1)[torch.arange(len(response)), response]
        assert_close(logprobs, expected)
        assert logprobs.dtype == torch.float32


@pytest.mark.parametrize("max_tokens", [1, 20, 10_000])
def test_scores_do_not_depend_on_max_tokens(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged, max_tokens: int
) -> None:
    prompts, responses = ragged
    actor_critic = make_actor_critic(sft_folder, reward_folder)
    model = actor_critic.model

    def all_scores(budget: int) -> list[Tensor]:
        policy = scoring.policy_scores(
            model, POLICY, prompts, responses, pad_id=PAD, temperature=1.0, max_tokens=budget
        )
        values = scoring.token_values(
            model, actor_critic.trunk, VALUE, prompts, responses, pad_id=PAD, max_tokens=budget
        )
        final = scoring.final_scores(model, "reward", prompts, pad_id=PAD, max_tokens=budget)
        return [*(tensor for score in policy for tensor in score), *values, final]

    for found, expected in zip(all_scores(max_tokens), all_scores(45), strict=True):
        assert_close(found, expected)


def test_policy_scores_logprobs_equal_token_logprobs(
    make_actor_critic: MakeActorCritic, sft_folder: Path, ragged: Ragged
) -> None:
    """With and without entropies the numbers are the same to the last bit."""
    model = make_actor_critic(sft_folder).model
    scores = scoring.policy_scores(model, POLICY, *ragged, pad_id=PAD, temperature=0.7, max_tokens=40)
    logprobs = scoring.token_logprobs(model, POLICY, *ragged, pad_id=PAD, temperature=0.7, max_tokens=40)
    assert all(torch.equal(score.logprobs, own) for score, own in zip(scores, logprobs, strict=True))


@pytest.mark.parametrize("pad_id", [PAD, EOS])
def test_final_scores_equal_sequence_classifier_on_each_row(
    make_actor_critic: MakeActorCritic,
    base_folder: Path,
    sft_folder: Path,
    reward_folder: Path,
    ragged: Ragged,
    pad_id: int,
) -> None:
    prompts, responses = ragged
    sequences = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    scorer = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    scorer.config.pad_token_id = pad_id  # if it is also the end token, the scorer reads one token before the end
    scorer = PeftModel.from_pretrained(scorer, reward_folder).eval()
    with torch.no_grad():
        expected = torch.cat([scorer(torch.tensor([ids])).logits[:, 0] for ids in sequences])
    model = make_actor_critic(sft_folder, reward_folder).model
    together = scoring.final_scores(model, "reward", sequences, pad_id=pad_id, max_tokens=10_000)
    single = [scoring.final_scores(model, "reward", [ids], pad_id=pad_id, max_tokens=10_000) for ids in sequences]
    assert_close(together, expected)
    assert_close(torch.cat(single), expected)
    assert expected.std() > 0.01  # the rows differ, so order matters


def test_token_values_new_critic_is_reward_model_before_each_token(
    make_actor_critic: MakeActorCritic, sft_folder: Path, reward_folder: Path, ragged: Ragged
) -> None:
    prompts, responses = ragged
    actor_critic = make_actor_critic(sft_folder, reward_folder)
    model = actor_critic.model
    values = scoring.token_values(model, actor_critic.trunk, VALUE, prompts, responses, pad_id=PAD, max_tokens=64)
    prefixes = [prompt + response[:-1] for prompt, response in zip(prompts, responses, strict=True)]
    expected = scoring.final_scores(model, "reward", prefixes, pad_id=PAD, max_tokens=64)
    assert_close(torch.stack([row[-1] for row in values]), expected)
    assert [len(row) for row in values] == [len(response) for response in responses]


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_token_values_critic_without_reward_run_predicts_zero(
    make_actor_critic: MakeActorCritic, sft_folder: Path, ragged: Ragged, kind: str
) -> None:
    actor_critic = make_actor_critic(sft_folder, kind=kind)
    values = scoring.token_values(actor_critic.model, actor_critic.trunk, VALUE, *ragged, pad_id=PAD, max_tokens=64)
    assert all(bool((row == 0).all()) for row in values)


def test_policy_scores_entropy_is_of_the_sampled_distribution(
    make_actor_critic: MakeActorCritic, sft_folder: Path, ragged: Ragged
) -> None:
    prompts, responses = ragged
    model = make_actor_critic(sft_folder).model
    (score,) = scoring.policy_scores(
        model, POLICY, prompts[:1], responses[:1], pad_id=PAD, temperature=0.5, max_tokens=64
    )
    with model.use(POLICY) as causal_lm, torch.no_grad():
        logits = causal_lm(torch.tensor([prompts[0] + responses[0]])).logits[0, len(prompts[0]) - 1 : -1]
    assert_close(score.entropy, torch.distributions.Categorical(logits=logits / 0.5).entropy())
