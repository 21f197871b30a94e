"""Scores of token sequences: padding and batching change nothing, and they are the library's own numbers."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_cli.inference import scoring
from rlhf_cli.ppo import actor_critic
from tests.support.tiny_policy import EOS, PAD

ATOL = 1e-5  # float32 log-probabilities of order 10, summed in another order


def close(got, expected):
    torch.testing.assert_close(got, expected, atol=ATOL, rtol=0)


def test_token_logprobs_equal_a_plain_forward_of_each_row_alone(make_cast, base_folder, sft_folder, ragged):
    prompts, responses = ragged
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), sft_folder).eval()
    bank = make_cast(sft_folder).bank
    found = scoring.token_logprobs(
        bank, actor_critic.POLICY, prompts, responses, pad_id=PAD, temperature=0.7, max_tokens=40
    )
    for prompt, response, got in zip(prompts, responses, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / 0.7, dim=-1)[torch.arange(len(response)), response]
        close(got, expected)
        assert got.dtype == torch.float32


@pytest.mark.parametrize("max_tokens", [1, 20, 10_000])
def test_the_budget_of_tokens_changes_no_score(make_cast, sft_folder, reward_folder, ragged, max_tokens):
    prompts, responses = ragged
    cast = make_cast(sft_folder, reward_folder)

    def scores(budget):
        options = {"pad_id": PAD, "max_tokens": budget}
        policy = scoring.policy_scores(cast.bank, actor_critic.POLICY, prompts, responses, temperature=1.0, **options)
        values = scoring.token_values(cast.bank, cast.trunk, actor_critic.VALUE, prompts, responses, **options)
        final = scoring.final_scores(cast.bank, "reward", prompts, **options)
        return [*(x for score in policy for x in score), *values, final]

    for got, expected in zip(scores(max_tokens), scores(45), strict=True):
        close(got, expected)


@pytest.mark.parametrize("pad_id", [PAD, EOS])
def test_final_scores_of_a_batch_equal_the_sequence_classifier_on_each_row(
    make_cast, base_folder, sft_folder, reward_folder, ragged, pad_id
):
    prompts, responses = ragged
    sequences = [p + r for p, r in zip(prompts, responses, strict=True)]
    scorer = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    scorer.config.pad_token_id = pad_id  # where it is the end token too, the scorer reads one token before the end
    scorer = PeftModel.from_pretrained(scorer, reward_folder).eval()
    with torch.no_grad():
        expected = torch.cat([scorer(torch.tensor([ids])).logits[:, 0] for ids in sequences])
    bank = make_cast(sft_folder, reward_folder).bank
    together = scoring.final_scores(bank, "reward", sequences, pad_id=pad_id, max_tokens=10_000)
    alone = [scoring.final_scores(bank, "reward", [ids], pad_id=pad_id, max_tokens=10_000) for ids in sequences]
    close(together, expected)
    close(torch.cat(alone), expected)
    assert expected.std() > 0.01  # the rows differ, so order matters


def test_the_critic_starts_as_the_reward_model_reading_before_each_token(make_cast, sft_folder, reward_folder, ragged):
    prompts, responses = ragged
    cast = make_cast(sft_folder, reward_folder)
    values = scoring.token_values(
        cast.bank, cast.trunk, actor_critic.VALUE, prompts, responses, pad_id=PAD, max_tokens=64
    )
    prefixes = [p + r[:-1] for p, r in zip(prompts, responses, strict=True)]  # the state before the last token
    expected = scoring.final_scores(cast.bank, "reward", prefixes, pad_id=PAD, max_tokens=64)
    close(torch.stack([v[-1] for v in values]), expected)
    assert [len(v) for v in values] == [len(r) for r in responses]


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_without_a_reward_run_the_critic_predicts_zero(make_cast, sft_folder, ragged, kind):
    prompts, responses = ragged
    cast = make_cast(sft_folder, kind=kind)
    values = scoring.token_values(
        cast.bank, cast.trunk, actor_critic.VALUE, prompts, responses, pad_id=PAD, max_tokens=64
    )
    assert all((v == 0).all() for v in values)


def test_entropy_is_of_the_distribution_that_was_sampled_from(make_cast, sft_folder, ragged):
    prompts, responses = ragged
    bank = make_cast(sft_folder).bank
    found = scoring.policy_scores(
        bank, actor_critic.POLICY, prompts[:1], responses[:1], pad_id=PAD, temperature=0.5, max_tokens=64
    )
    with bank.use(actor_critic.POLICY) as model, torch.no_grad():
        logits = model(torch.tensor([prompts[0] + responses[0]])).logits[0, len(prompts[0]) - 1 : -1]
    close(found[0].entropy, torch.distributions.Categorical(logits=logits / 0.5).entropy())


def test_pack_keeps_to_the_budget_and_loses_no_row():
    lengths = [3, 50, 7, 7, 1, 20, 19]
    groups = scoring.pack(lengths, 40)
    assert sorted(i for group in groups for i in group) == list(range(7))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 40
    assert groups[1] == [5, 6]  # like lengths share a batch
