"""A tiny Llama with a tokenizer of 28 words, adapters on it, and PPO trainers that write into a temporary folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from rlhf_cli.data.rows import PromptRow, Text
from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.ppo import optimization
from rlhf_cli.ppo.actor_critic import POLICY, VALUE, ActorCritic, build_actor_critic, role_folders
from rlhf_cli.ppo.trainer import PPOTrainer
from rlhf_cli.ppo.types import Demonstrations, PPOData, Prompts
from rlhf_cli.recipe.schema import Adapter, Base, Ppo
from rlhf_cli.rewards.base import Completions, SourceScores
from rlhf_cli.rewards.build import RewardFunction
from rlhf_cli.rewards.ensemble import Combine, find_ensemble
from rlhf_cli.runs.run import Run
from tests.support.reporters import RecordingReporter

PAD, BOS, EOS = 0, 1, 2
WORDS = 28
VOCABULARY = WORDS + 4  # w0 is token 4
ADAPTER = Adapter(rank=4, alpha=8)
PROMPT_ROWS = 16

MakeAdapter = Callable[..., Path]
MakeActorCritic = Callable[..., ActorCritic]
MakeRun = Callable[[], Run]
MakeTrainer = Callable[..., PPOTrainer]
Ragged = tuple[list[list[int]], list[list[int]]]  # prompts and responses, as token ids
ScoreTexts = Callable[[list[Any]], Sequence[float | None]]


@pytest.fixture(scope="session", autouse=True)
def silence_libraries() -> None:
    """Silence log messages among the libraries."""
    silence_library_logging()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a Llama of 2 layers with a word-level tokenizer. Return its folder."""
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
def make_adapter(base_folder: Path, tmp_path: Path) -> MakeAdapter:
    """Return a function that writes an adapter with random weights, with plain PEFT."""

    def make(task: str = "CAUSAL_LM", seed: int = 1) -> Path:
        torch.manual_seed(seed)
        if task == "SEQ_CLS":
            model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
        else:
            model = AutoModelForCausalLM.from_pretrained(base_folder)
        settings = LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules="all-linear")
        model = get_peft_model(model, settings)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3 if "score" in key else 0.1)
        folder = tmp_path / f"{task}-{seed}"
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def sft_folder(make_adapter: MakeAdapter) -> Path:
    """Return the folder of an sft adapter."""
    return make_adapter("CAUSAL_LM", seed=1)


@pytest.fixture
def reward_folder(make_adapter: MakeAdapter) -> Path:
    """Return the folder of a reward adapter."""
    return make_adapter("SEQ_CLS", seed=2)


@pytest.fixture
def make_actor_critic(base_folder: Path) -> MakeActorCritic:
    """Return a function that loads policy, reference, critic and at most one reward run on one base."""

    def make(
        start: Path | None = None,
        reward: Path | None = None,
        kind: str = "adapter",
        *,
        settings: Ppo | None = None,
        weight: float = 1.0,
    ) -> ActorCritic:
        reward_functions = [reward_run(reward, weight=weight)] if reward else []
        roles = role_folders(start, reward_functions)
        model = MultiAdapterModel.load(Base(model=str(base_folder)), ADAPTER, str(base_folder), roles)
        return build_actor_critic(model, settings or Ppo.model_validate({"critic": {"kind": kind}}), reward_functions)

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that opens a run of ppo."""

    def make() -> Run:
        return Run.create(tmp_path / "runs", "tiny", "ppo", smoke=False, reporter=RecordingReporter())

    return make


@pytest.fixture
def ragged() -> Ragged:
    """Return prompts and responses of different lengths: one of a single token, one without an end token."""
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> list[int]:
        drawn: list[int] = torch.randint(4, VOCABULARY, (count,), generator=generator).tolist()
        return drawn

    prompts = [ids(n) for n in (5, 1, 9, 3, 7, 2, 4, 6)]
    responses = [[*ids(n), EOS] for n in (3, 6, 0, 9, 1, 4, 5)]
    return prompts, [*responses, ids(10)]


def reward_run(folder: Path, combine: Combine = "mean", *, weight: float = 1.0) -> RewardFunction:
    """Return the reward function of a reward run in the role `reward`."""
    return RewardFunction("reward", weight, find_ensemble("reward", folder, combine), None)


def share_of_w5(completions: Sequence[str]) -> list[float]:
    """Return the share of each completion's words that are w5."""
    words = [completion.split() for completion in completions]
    return [w.count("w5") / max(len(w), 1) for w in words]


class FakeScorer:
    """A reward source that is a function of the completions.

    Attributes:
        prompts: The prompts of each call.
    """

    name = "share"

    def __init__(self, function: ScoreTexts) -> None:
        self.prompts: list[list[Text]] = []
        self._function = function

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Accept all prompts."""

    def load(self, base: Base, *, smoke: bool) -> None:
        """Load nothing."""

    def score(self, completions: Completions, *, max_tokens: int) -> SourceScores:  # noqa: ARG002
        """Return the function's scores."""
        self.prompts.append(completions.prompts)
        return SourceScores(self._function(list(completions.completions)))


def small_settings(**fields: Any) -> Ppo:
    """Return settings of two iterations of four prompts each."""
    defaults: dict[str, Any] = {"iterations": 2, "rollout_batch_size": 4, "max_new_tokens": 5, "epochs": 2}
    defaults |= {"minibatches": 2, "micro_batch_tokens": 60, "temperature": 0.7, "learning_rate": 1e-3}
    return Ppo(**{**defaults, **fields})


def read_log(run: Run, file: str) -> list[dict[str, Any]]:
    """Return the rows of a run's JSONL file."""
    return [json.loads(line) for line in (run.path / file).read_text().splitlines()]


def encode_prompts(base_folder: Path, count: int) -> tuple[PreTrainedTokenizerFast, Prompts]:
    """Return the tokenizer and `count` prompts of two words."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    chat_template.prepare(tokenizer, "auto")
    rows = [PromptRow(f"w{i} w{(3 * i) % WORDS}", {}) for i in range(count)]
    return tokenizer, Prompts(rows, chat_template.encode_prompts(tokenizer, [row.prompt for row in rows]))


@pytest.fixture
def make_trainer(make_actor_critic: MakeActorCritic, make_run: MakeRun, base_folder: Path) -> MakeTrainer:
    """Return a function that builds a trainer.

    Its reward is a Python function, unless that is None, and a reward run, if `reward` is given.
    """

    def make(
        settings: Ppo,
        start: Path | None = None,
        reward: Path | None = None,
        *,
        function: ScoreTexts | None = share_of_w5,
        scorer: FakeScorer | None = None,
        demonstrations: Demonstrations | None = None,
        weight: float = 1.0,
    ) -> PPOTrainer:
        actor_critic = make_actor_critic(start, reward, settings=settings, weight=weight)
        reward_functions = [reward_run(reward, weight=weight)] if reward else []
        if function is not None:
            reward_functions += [RewardFunction(FakeScorer.name, 1.0, None, scorer or FakeScorer(function))]
        tokenizer, prompts = encode_prompts(base_folder, PROMPT_ROWS)
        run = make_run()
        arguments = optimization.training_arguments(settings.trainer, run.path)
        optimizing = optimization.build_optimization(
            settings, arguments, actor_critic.model.parameters(POLICY), actor_critic.model.parameters(VALUE)
        )
        torch.manual_seed(0)
        return PPOTrainer(
            settings,
            actor_critic,
            reward_functions,
            PPOData(tokenizer, prompts, Prompts(prompts.rows[:2], prompts.ids[:2]), demonstrations),
            optimizing,
            optimization.Trackers(arguments, {}),
            run,
            seed=0,
        )

    return make
