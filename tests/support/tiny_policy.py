"""A tiny Llama with a tokenizer of 28 words, adapters on it, and a run that writes into a temporary folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import PromptRow
from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.ppo import actor_critic, optimization
from rlhf_cli.ppo.trainer import PPOTrainer, Prompts
from rlhf_cli.recipe.schema import Adapter, Base, Critic, Ppo
from rlhf_cli.rewards import build
from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter

PAD, BOS, EOS = 0, 1, 2
WORDS = 28
VOCABULARY = WORDS + 4  # w0 is token 4
ADAPTER = Adapter(rank=4, alpha=8)


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    silence_library_logging()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo-base")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,  # so that adapters, positions and neighbours show in the outputs
        max_position_embeddings=128,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    torch.manual_seed(7)
    LlamaForCausalLM(config).save_pretrained(folder)
    names = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(WORDS))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def make_adapter(base_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write an adapter with random weights, with peft alone."""

    def make(task: str = "CAUSAL_LM", seed: int = 1) -> Path:
        kind = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
        options = {"num_labels": 1} if task == "SEQ_CLS" else {}
        torch.manual_seed(seed)
        settings = LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules="all-linear")
        model = get_peft_model(kind.from_pretrained(base_folder, **options), settings)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3 if "score" in key else 0.1)
        folder = tmp_path / f"{task}-{seed}"
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def sft_folder(make_adapter: Callable[..., Path]) -> Path:
    return make_adapter("CAUSAL_LM", seed=1)


@pytest.fixture
def reward_folder(make_adapter: Callable[..., Path]) -> Path:
    return make_adapter("SEQ_CLS", seed=2)


@pytest.fixture
def make_cast(base_folder: Path) -> Callable[..., actor_critic.ActorCritic]:
    """Policy, reference, critic and at most one reward run, in one bank."""

    def make(start: Path | None = None, reward: Path | None = None, kind: str = "adapter") -> actor_critic.ActorCritic:
        folders = {actor_critic.POLICY: start, actor_critic.REFERENCE: start} | ({"reward": reward} if reward else {})
        bank = MultiAdapterModel.load(Base(model=str(base_folder)), ADAPTER, str(base_folder), folders)
        terms = [actor_critic.RewardFunction("reward", 1.0, "reward", None)] if reward else []
        return actor_critic.assign(bank, Critic(kind=kind), terms)

    return make


@pytest.fixture
def make_run(tmp_path: Path, base_folder: Path) -> Callable[[], Run]:
    def make() -> Run:
        return Run.create(
            tmp_path / "runs", "tiny", "ppo", smoke=False, base_path=str(base_folder), reporter=RecordingReporter()
        )

    return make


@pytest.fixture
def ragged() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses of different lengths: one of a single token, one without an end token."""
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> list[int]:
        return torch.randint(4, VOCABULARY, (count,), generator=generator).tolist()

    prompts = [ids(n) for n in (5, 1, 9, 3, 7, 2, 4, 6)]
    responses = [[*ids(n), EOS] for n in (3, 6, 0, 9, 1, 4, 5)]
    return prompts, [*responses, ids(10)]


def share_of_w5(completions):
    """The share of the answer's words that are w5."""
    words = [completion.split() for completion in completions]
    return [w.count("w5") / max(len(w), 1) for w in words]


class Says:
    """A judge that is a function of the completions."""

    def __init__(self, function):
        self.function = function

    def check(self, rows): ...

    def score(self, answered, *, max_tokens):
        return self.function(answered.completions)


def small(**fields):
    """Two iterations of four prompts each."""
    given = {"iterations": 2, "rollout_batch_size": 4, "max_new_tokens": 5, "epochs": 2, "minibatches": 2}
    return Ppo(**{**given, "micro_batch_tokens": 60, "temperature": 0.7, "learning_rate": 1e-3, **fields})


def lines(run, file):
    return [json.loads(line) for line in (run.path / file).read_text().splitlines()]


@pytest.fixture
def make_trainer(make_cast, make_run, base_folder):
    def make(settings, start=None, reward=None, function=share_of_w5, demonstrations=None, run=None):
        cast = make_cast(start, reward, settings.critic.kind)
        terms = [build.RewardFunction("reward", 1.0, "reward", None)] if reward else []
        terms += [build.RewardFunction("share", 1.0, None, Says(function))]
        tokenizer = AutoTokenizer.from_pretrained(base_folder)
        chat_template.prepare(tokenizer, "auto")
        rows = [PromptRow(f"w{i} w{(3 * i) % 28}", {}) for i in range(16)]
        prompts = Prompts(rows, chat_template.encode_prompts(tokenizer, [row.prompt for row in rows]))
        watched = Prompts(prompts.rows[:2], prompts.ids[:2])
        run = run or make_run()
        asked = optimization.arguments(settings.trainer, run.path)
        trackers = optimization.Trackers(asked, {})
        parts = optimization.build(
            settings, asked, cast.bank.parameters(actor_critic.POLICY), cast.bank.parameters(actor_critic.VALUE)
        )
        torch.manual_seed(0)
        return PPOTrainer(
            settings, cast, terms, tokenizer, prompts, watched, demonstrations, parts, trackers, run, seed=0
        )

    return make
