"""`rlhf run --smoke` of every recipe as it stands: a hub cache holds stand-ins for its base and data sets."""

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
ROWS = {
    "sft": ("sft",),
    "reward": ("preferences",),
    "ppo": ("prompts",),
    "eval": ("sft", "preferences", "prompts"),
}
Smoke = Callable[..., dict[str, Any]]
CHATML = (  # Qwen2.5's, without its system prompt
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def conversation(number: int, answer: str) -> list[dict[str, str]]:
    asked = f"What is {number} and {number + 1}?"
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def ultrachat(number: int) -> dict[str, Any]:
    """A row of HuggingFaceH4/ultrachat_200k: two turns of each."""
    messages = conversation(number, "Let me see.") + conversation(number + 1000, "It is a sum.")
    return {"prompt": messages[0]["content"], "prompt_id": str(number), "messages": messages}


def ultrafeedback(number: int) -> dict[str, Any]:
    """A row of HuggingFaceH4/ultrafeedback_binarized."""
    chosen, rejected = conversation(number, f"It is {2 * number + 1}."), conversation(number, "I do not know.")
    row = {"prompt": chosen[0]["content"], "prompt_id": str(number), "chosen": chosen, "rejected": rejected}
    return {**row, "messages": chosen, "score_chosen": 8.0, "score_rejected": 2.5}


def hh(number: int) -> dict[str, Any]:
    """A row of Anthropic/hh-rlhf: two transcripts that begin alike."""
    asked = f"\n\nHuman: What is {number} and {number + 1}?\n\nAssistant:"
    return {"chosen": f"{asked} It is {2 * number + 1}.", "rejected": f"{asked} Go away."}


DATA_SETS: dict[str, Callable[[int], dict[str, Any]]] = {
    "HuggingFaceH4/ultrachat_200k": ultrachat,
    "HuggingFaceH4/ultrafeedback_binarized": ultrafeedback,
    "Anthropic/hh-rlhf": hh,
}


@pytest.fixture(scope="module")
def cache(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with config and tokenizer of the two bases, and the commits of the data sets. --smoke takes no
    weights, so there are none."""
    from transformers import AutoTokenizer, LlamaConfig, Qwen2Config

    folder = tmp_path_factory.mktemp("hub")
    qwen = Qwen2Config(vocab_size=320, tie_word_embeddings=True)
    llama = LlamaConfig(vocab_size=320, num_key_value_heads=8)
    for name, config, template in (("Qwen/Qwen2.5-0.5B", qwen, CHATML), ("meta-llama/Llama-3.1-8B", llama, None)):
        snapshot = cached(folder, "models", name) / "snapshots" / COMMIT
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        tokenizer.chat_template = template  # Llama-3.1-8B, which is no chat model, has none
        config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        config.save_pretrained(snapshot)
        tokenizer.save_pretrained(snapshot)
    for name in DATA_SETS:
        cached(folder, "datasets", name)
    return folder


def cached(cache: Path, kind: str, name: str) -> Path:
    folder = cache / f"{kind}--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        assert config is None
        assert revision in (COMMIT, None)  # None: `export` tries its model on any prompts
        first = 0 if split.startswith("train") else 100  # other prompts in other splits
        return datasets.Dataset.from_list([DATA_SETS[name](first + number) for number in range(24)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Smoke:
    """Run stages of a recipe with --smoke; the manifests of what they made, by stage."""

    def run(recipe: Path, *stages: str) -> dict[str, Any]:
        words = ["rlhf", "run", *stages, "-r", str(recipe), "--runs-dir", str(tmp_path), "--smoke", "--json"]
        monkeypatch.setattr(sys, "argv", words)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        told = capfd.readouterr()
        assert ended.value.code == 0, told.err
        made = {stage["stage"]: Path(stage["path"]) for stage in json.loads(told.out)["stages"]}
        return {stage: json.loads((path / "manifest.json").read_text()) for stage, path in made.items()}

    return run


def check(made: dict[str, Any], stages: list[str]) -> None:
    """Each stage is there, tiny, and marked for what it is."""
    assert list(made) == stages
    assert all(manifest["smoke"] for manifest in made.values())
    if "export" in made:
        assert made["export"]["metrics"]["export.kl"] < 1e-2  # nats a token: what it wrote is what it trained
        assert made["export"]["metrics"]["export.parameters"] < 500_000
        assert "model.safetensors" in made["export"]["files"]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("qwen2.5-0.5b-qlora", CHAIN),
        ("llama-3.1-8b-qlora", ["sft", "reward", "ppo"]),
        ("hh-rlhf", ["sft", "reward", "ppo"]),
        ("ultrafeedback", ["sft", "reward", "ppo"]),
    ],
)
def test_a_worked_recipe_runs_as_it_stands(smoke: Smoke, name: str, stages: list[str]) -> None:
    made = smoke(RECIPES / name / "recipe.yaml", *stages)
    check(made, stages)
    for manifest in made.values():
        hub = [item for item in manifest["inputs"] if item["kind"] == "hub"]
        assert {item["version"] for item in hub} == {COMMIT}
        assert {"base", *(f"data.{kind}" for kind in ROWS.get(manifest["stage"], ()))} == {item["role"] for item in hub}


def test_no_worked_recipe_is_left_out() -> None:
    (marks,) = (m for m in test_a_worked_recipe_runs_as_it_stands.pytestmark if m.name == "parametrize")
    assert {"demo", *(name for name, _ in marks.args[1])} == {
        path.parent.name for path in RECIPES.glob("*/recipe.yaml")
    }


@pytest.mark.parametrize("recipe", [RECIPES / "demo" / "recipe.yaml", STARTER / "recipe.yaml"], ids=["demo", "starter"])
def test_a_recipe_that_makes_its_own_base_runs_as_it_stands(smoke: Smoke, recipe: Path) -> None:
    check(smoke(recipe), ["pretrain", *CHAIN])
