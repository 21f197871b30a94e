"""`rlhf run --smoke` of every recipe without changes. A Hub cache has stand-ins for base models and datasets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.cli.app import main
from rlhf_cli.cli.init import STARTER

RECIPES = Path(__file__).parents[2] / "recipes"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHAIN = ["sft", "reward", "ppo", "eval", "export"]
WORKED = [  # recipe, and the stages that run
    ("qwen2.5-0.5b-qlora", CHAIN),
    ("llama-3.1-8b-qlora", ["sft", "reward", "ppo"]),
    ("hh-rlhf", ["sft", "reward", "ppo"]),
    ("ultrafeedback", ["sft", "reward", "ppo"]),
    ("ai-feedback", ["sft", "revise", "eval"]),
]
ROWS = {
    "sft": ("sft",),
    "reward": ("preferences",),
    "ppo": ("prompts",),
    "revise": ("prompts",),
    "eval": ("sft", "preferences", "prompts"),
    "export": ("prompts", "sft"),  # the exported model is compared on their prompts
}
Smoke = Callable[..., dict[str, Any]]
CHATML = (  # the template of Qwen2.5 without its system prompt
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

pytestmark = pytest.mark.slow


def conversation(number: int, completion: str) -> list[dict[str, str]]:
    """Return one question about a sum, and a completion."""
    question = f"What is {number} and {number + 1}?"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": completion}]


def ultrachat(number: int) -> dict[str, Any]:
    """Return a row of HuggingFaceH4/ultrachat_200k: two turns of each speaker."""
    messages = conversation(number, "Let me see.") + conversation(number + 1000, "It is a sum.")
    return {"prompt": messages[0]["content"], "prompt_id": str(number), "messages": messages}


def ultrafeedback(number: int) -> dict[str, Any]:
    """Return a row of HuggingFaceH4/ultrafeedback_binarized."""
    chosen, rejected = conversation(number, f"It is {2 * number + 1}."), conversation(number, "I do not know.")
    row = {"prompt": chosen[0]["content"], "prompt_id": str(number), "chosen": chosen, "rejected": rejected}
    return {**row, "messages": chosen, "score_chosen": 8.0, "score_rejected": 2.5}


def hh(number: int) -> dict[str, Any]:
    """Return a row of Anthropic/hh-rlhf: two transcripts with the same prompt."""
    prompt = f"\n\nHuman: What is {number} and {number + 1}?\n\nAssistant:"
    return {"chosen": f"{prompt} It is {2 * number + 1}.", "rejected": f"{prompt} Go away."}


DATASETS: dict[str, Callable[[int], dict[str, Any]]] = {
    "HuggingFaceH4/ultrachat_200k": ultrachat,
    "HuggingFaceH4/ultrafeedback_binarized": ultrafeedback,
    "Anthropic/hh-rlhf": hh,
}


@pytest.fixture(scope="module")
def cache(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a Hub cache with config and tokenizer of the base models and the commits of the datasets.

    It has no weights, because --smoke needs none.
    """
    from transformers import AutoTokenizer, LlamaConfig, Qwen2Config

    folder = tmp_path_factory.mktemp("hub")
    qwen = Qwen2Config(vocab_size=320, tie_word_embeddings=True)
    llama = LlamaConfig(vocab_size=320, num_key_value_heads=8)
    for name, config, template in (("Qwen/Qwen2.5-0.5B", qwen, CHATML), ("meta-llama/Llama-3.1-8B", llama, None)):
        snapshot = cached(folder, "models", name) / "snapshots" / COMMIT
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        tokenizer.chat_template = template  # Llama-3.1-8B is not a chat model and has none
        config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        config.save_pretrained(snapshot)
        tokenizer.save_pretrained(snapshot)
    for name in DATASETS:
        cached(folder, "datasets", name)
    return folder


def cached(cache: Path, kind: str, name: str) -> Path:
    """Create the folder of a repository in the Hub cache."""
    folder = cache / f"{kind}--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        assert config is None
        assert revision in (COMMIT, None)  # None: `export` verifies its model on any prompts
        first = 0 if split.startswith("train") else 100  # the splits have different prompts
        return datasets.Dataset.from_list([DATASETS[name](first + number) for number in range(24)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Smoke:
    """Return a function that runs stages of a recipe with --smoke and returns their manifests by stage."""

    def run(recipe: Path, *stages: str) -> dict[str, Any]:
        arguments = ["rlhf", "run", *stages, "-r", str(recipe), "--runs-dir", str(tmp_path), "--smoke", "--json"]
        monkeypatch.setattr(sys, "argv", arguments)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        assert ended.value.code == 0, printed.err
        paths = {stage["stage"]: Path(stage["path"]) for stage in json.loads(printed.out)["stages"]}
        return {stage: json.loads((path / "manifest.json").read_text()) for stage, path in paths.items()}

    return run


def check_manifests(manifests: dict[str, Any], stages: list[str]) -> None:
    """Assert that each stage ran, is marked as a smoke run, and exported a tiny model."""
    assert list(manifests) == stages
    assert all(manifest["smoke"] for manifest in manifests.values())
    if "export" in manifests:
        metrics = manifests["export"]["metrics"]
        assert metrics["export.kl"] < 1e-2  # nats per token: the exported model is the trained one
        assert metrics["export.parameters"] < 500_000
        assert "model.safetensors" in manifests["export"]["files"]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("name", "stages"), WORKED)
def test_smoke_run_of_worked_recipe_completes(smoke: Smoke, name: str, stages: list[str]) -> None:
    manifests = smoke(RECIPES / name / "recipe.yaml", *stages)
    check_manifests(manifests, stages)
    for manifest in manifests.values():
        hub = [item for item in manifest["inputs"] if item["kind"] == "hub"]
        assert {item["version"] for item in hub} == {COMMIT}
        assert {"base", *(f"data.{kind}" for kind in ROWS.get(manifest["stage"], ()))} == {item["role"] for item in hub}


def test_smoke_runs_cover_every_worked_recipe() -> None:
    assert {"demo", *(name for name, _ in WORKED)} == {path.parent.name for path in RECIPES.glob("*/recipe.yaml")}


def test_smoke_run_of_starter_completes(smoke: Smoke) -> None:
    check_manifests(smoke(STARTER / "recipe.yaml"), ["pretrain", *CHAIN])


def test_smoke_run_of_demo_completes_without_annotators(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_FEEDBACK_STORE", str(tmp_path / "feedback.db"))
    stages = ["pretrain", "sft", "sample", "feedback", "reward", "ppo", "eval"]
    check_manifests(smoke(RECIPES / "demo" / "recipe.yaml"), stages)
