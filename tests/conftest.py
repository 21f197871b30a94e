"""Set up every test: no network and one thread; a tiny base model, and the real model and data if they are there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_cli.runs.run_log import LOGGER, RunLogHandler
from tests.support.reward_server import Server
from tests.support.shared_data import require_shared

# Before anything imports torch, transformers or huggingface_hub, which read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    NO_COLOR="1",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("RLHF_RUNS", "RLHF_REWARD_TOKEN", "RLHF_JUDGE_TOKEN", "RLHF_DEBUG", "FORCE_COLOR", "TERMINAL_WIDTH"):
    os.environ.pop(_name, None)

# A background job of a script ignores SIGINT, and so do all processes that it starts; some tests send SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Minutes each: started last, they would run alone on one of two processes.
LONGEST_FILES = (
    *("test_demo_seeds.py", "test_families.py", "test_kills.py", "test_processes.py", "test_exact_resume.py"),
    *("test_first_afternoon.py", "test_keyboard.py", "test_accessibility.py", "test_server_kills.py"),
)

SENTENCES = (
    "Once upon a time there was a small dog who lived by the sea.",
    "User: What is two and three? Assistant: Two and three is five.",
    "The cat said: please, thank you, and good night.",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; `--no-loadscope-reorder` keeps this order."""
    order = {name: index for index, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def restore_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers: a command that ended in this process ignores signals from then on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def detach_run_logs() -> Iterator[None]:
    """Detach the log handlers of runs that a test left open."""
    yield
    for handler in [h for h in LOGGER.handlers if isinstance(h, RunLogHandler)]:
        handler.detach()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start a reward server, which returns the length of each completion."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server().running() as made:
        yield made


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with a real pretrained model and human data, beside the repository."""
    return require_shared()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Llama of 2 layers and a byte-level BPE tokenizer. Width 64 is the least for 4 bits on a CPU."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[*names.values()], initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, **names)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,  # so that adapters and positions show in the outputs
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny-base")
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
