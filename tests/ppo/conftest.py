"""A tiny Llama with a tokenizer of 28 words, adapters on it, and a run that writes into a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf_cli.models.bank import Bank
from rlhf_cli.models.base import quiet
from rlhf_cli.ppo import roles
from rlhf_cli.recipe.schema import Adapter, Base, Critic
from rlhf_cli.runs.run import Run

PAD, BOS, EOS = 0, 1, 2
WORDS = 28
VOCABULARY = WORDS + 4  # w0 is token 4
ADAPTER = Adapter(rank=4, alpha=8)


class Quiet:
    """A reporter that keeps warnings and shows nothing."""

    def begin(self, total: int, unit: str) -> None: ...
    def step(self, step: int, metrics: object) -> None: ...
    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    quiet()


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
def make_cast(base_folder: Path) -> Callable[..., roles.Cast]:
    """Policy, reference, critic and at most one reward run, in one bank."""

    def make(start: Path | None = None, reward: Path | None = None, kind: str = "adapter") -> roles.Cast:
        folders = {roles.POLICY: start, roles.REFERENCE: start} | ({"reward": reward} if reward else {})
        bank = Bank.load(Base(model=str(base_folder)), ADAPTER, str(base_folder), folders)
        terms = [roles.Term("reward", 1.0, "reward", None)] if reward else []
        return roles.assign(bank, Critic(kind=kind), terms)

    return make


@pytest.fixture
def make_run(tmp_path: Path, base_folder: Path) -> Callable[[], Run]:
    def make() -> Run:
        return Run.create(tmp_path / "runs", "tiny", "ppo", smoke=False, base=str(base_folder), reporter=Quiet())

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
