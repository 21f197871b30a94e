"""Train one of the processes of test_distributed and print its metrics; completions are a function of the prompt.

python -m tests.ppo.distributed_worker BASE SFT REWARD critic-kind ddp|fsdp FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from unittest import mock

import torch
from torch.distributed.tensor import DTensor

from rlhf_cli import distributed
from rlhf_cli.inference import generation
from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.ppo import optimization
from rlhf_cli.ppo.actor_critic import POLICY, VALUE, build_actor_critic, role_folders
from rlhf_cli.ppo.trainer import PPOTrainer
from rlhf_cli.ppo.types import Demonstrations, PPOData, Prompts
from rlhf_cli.recipe.schema import Base, Critic, Kl
from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter
from tests.support.tiny_policy import ADAPTER, EOS, VOCABULARY, encode_prompts, reward_run, small_settings

PROMPTS = 24
DEMONSTRATIONS = Demonstrations([[5, 6], [7], [8, 9]], [[10, 11, EOS], [12, EOS], [13, EOS]])


class PromptedResponses:
    """A stand-in for `generate` whose responses depend only on the prompts.

    Attributes:
        prompts: The prompts of all rollouts, without the single sample prompt.
    """

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def __call__(self, _model: object, prompts: list[list[int]], **_: object) -> list[list[int]]:
        """Return up to four drawn tokens and an end token for each prompt."""
        if len(prompts) > 1:
            self.prompts.extend(prompts)
        draws = [random.Random(str(prompt)) for prompt in prompts]
        return [[draw.randrange(4, VOCABULARY) for _ in range(draw.randrange(1, 5))] + [EOS] for draw in draws]


def main(base: str, sft: str, reward: str, kind: str, strategy: str, folder: str) -> None:
    """Train for three iterations and print metrics, weights, prompts and the sharded numbers as JSON."""
    silence_library_logging()
    distributed.init_process_group()
    torch.manual_seed(distributed.rank())  # as different draws as possible
    settings = small_settings(
        iterations=3,
        rollout_batch_size=8,
        learning_rate=1e-2,
        critic=Critic.model_validate({"kind": kind, "learning_rate": 1e-2}),
        kl=Kl(coef=0.1, target=0.3, horizon=20),
        normalize_reward=True,
        entropy_coef=0.01,
        ptx_coef=0.1,
        save_every=100,
    )
    reward_functions = [reward_run(Path(reward))]
    roles = role_folders(Path(sft), reward_functions)
    model = MultiAdapterModel.load(Base(model=base), ADAPTER, base, roles, sharded=strategy == "fsdp")
    actor_critic = build_actor_critic(model, settings, reward_functions)
    tokenizer, prompts = encode_prompts(Path(base), PROMPTS)
    arguments = optimization.training_arguments({}, Path(folder))
    trainer = PPOTrainer(
        settings,
        actor_critic,
        reward_functions,
        PPOData(tokenizer, prompts, Prompts(prompts.rows[:1], prompts.ids[:1]), DEMONSTRATIONS),
        optimization.build_optimization(settings, arguments, model.parameters(POLICY), model.parameters(VALUE)),
        optimization.Trackers(arguments, {}),
        Run.create(Path(folder) / str(distributed.rank()), "tiny", "ppo", smoke=False, reporter=RecordingReporter()),
        seed=0,
    )
    generate = PromptedResponses()
    with mock.patch.object(generation, "generate", generate):
        history = trainer.train()
    weights = [float(p.double().norm()) for role in (POLICY, VALUE) for p in model.parameters(role)]
    with model.use(POLICY) as causal_lm:
        sharded = sum(p.to_local().numel() for p in causal_lm.parameters() if isinstance(p, DTensor))
    print(json.dumps({"history": history, "weights": weights, "prompts": generate.prompts, "sharded": sharded}))


if __name__ == "__main__":
    main(*sys.argv[1:])
