"""One of the processes of test_distributed: its answers are a function of the prompt; prints its figures.

python -m tests.ppo.distributed_worker BASE SFT REWARD critic-kind ddp|fsdp FOLDER
"""

import json
import random
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer

from rlhf_cli import distributed
from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import PromptRow
from rlhf_cli.inference import generation
from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.ppo import actor_critic, optimization, update
from rlhf_cli.ppo.trainer import PPOTrainer, Prompts
from rlhf_cli.recipe.schema import Base, Critic, Kl
from rlhf_cli.rewards import build
from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter
from tests.support.tiny_policy import ADAPTER, EOS, small


def main(base: str, sft: str, reward: str, kind: str, strategy: str, folder: str) -> None:
    silence_library_logging()
    distributed.init_process_group()
    torch.manual_seed(distributed.rank())  # as different draws as can be
    settings = small(
        iterations=3,
        rollout_batch_size=8,
        learning_rate=1e-2,
        critic=Critic(kind=kind, learning_rate=1e-2),
        kl=Kl(coef=0.1, target=0.3, horizon=20),
        normalize_reward=True,
        entropy_coef=0.01,
        ptx_coef=0.1,
        save_every=100,
    )
    folders = {actor_critic.POLICY: Path(sft), actor_critic.REFERENCE: Path(sft), "reward": Path(reward)}
    terms = [build.RewardFunction("reward", 1.0, "reward", None)]
    bank = MultiAdapterModel.load(Base(model=base), ADAPTER, base, folders, sharded=strategy == "fsdp")
    cast = actor_critic.assign(bank, settings.critic, terms)
    tokenizer = AutoTokenizer.from_pretrained(base)
    chat_template.prepare(tokenizer, "auto")
    rows = [PromptRow(f"w{i} w{(3 * i) % 28}", {}) for i in range(24)]
    prompts = Prompts(rows, chat_template.encode_prompts(tokenizer, [row.prompt for row in rows]))
    answered: list[list[int]] = []

    def generate(model: object, ids: list[list[int]], **_: object) -> list[list[int]]:
        if len(ids) > 1:  # not the watched one
            answered.extend(ids)
        draws = [random.Random(str(one)) for one in ids]
        return [[draw.randrange(4, 32) for _ in range(draw.randrange(1, 5))] + [EOS] for draw in draws]

    generation.generate = generate
    parts = optimization.build(
        settings,
        optimization.arguments({}, Path(folder)),
        cast.bank.parameters(actor_critic.POLICY),
        cast.bank.parameters(actor_critic.VALUE),
    )
    run = Run.create(
        Path(folder) / str(distributed.rank()), "tiny", "ppo", smoke=False, base_path=base, reporter=RecordingReporter()
    )
    demonstrations = update.Demonstrations([[5, 6], [7], [8, 9]], [[10, 11, EOS], [12, EOS], [13, EOS]])
    trackers = optimization.Trackers(optimization.arguments({}, Path(folder)), {})
    watched = Prompts(rows[:1], prompts.ids[:1])
    trainer = PPOTrainer(
        settings, cast, terms, tokenizer, prompts, watched, demonstrations, parts, trackers, run, seed=0
    )
    history = trainer.train()
    weights = [
        float(p.double().norm())
        for role in (actor_critic.POLICY, actor_critic.VALUE)
        for p in cast.bank.parameters(role)
    ]
    held = sum(p.to_local().numel() for p in bank._base.parameters() if isinstance(p, DTensor))
    print(json.dumps({"history": history, "weights": weights, "answered": answered, "held": held}))


if __name__ == "__main__":
    main(*sys.argv[1:])
