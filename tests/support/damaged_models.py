"""Damage a model's directory in one way each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.catalogue import edit_json

WEIGHTS = "model.safetensors"


def truncate(path: Path, size: int = 1000) -> None:
    """Cut `size` bytes off the end of a file."""
    path.write_bytes(path.read_bytes()[:-size])


def flip_bit(path: Path) -> None:
    """Flip one bit near the end of a file."""
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def pickle_weights(folder: Path) -> None:
    """Store the weights as a pickle only."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def remove_tensor(folder: Path) -> None:
    """Remove the final norm from the weights."""
    weights = load_file(folder / WEIGHTS)
    del weights["model.norm.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def remove_tokenizer(folder: Path) -> None:
    """Remove all files of the tokenizer."""
    for path in folder.glob("token*"):
        path.unlink()


def remove_weights(folder: Path) -> None:
    """Remove the weights."""
    (folder / WEIGHTS).unlink()


def remove_config(folder: Path) -> None:
    """Remove config.json."""
    (folder / "config.json").unlink()


def shrink_vocabulary(folder: Path) -> None:
    """Cut the model to the tokens below 300; its tokenizer keeps all."""
    weights = load_file(folder / WEIGHTS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:300].clone()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    edit_json(folder / "config.json", vocab_size=300)


DAMAGES: Mapping[str, tuple[Callable[[Path], object], str]] = {  # damage, and the code of the issue without `model.`
    "truncated_weights": (lambda folder: truncate(folder / WEIGHTS), "load-failed"),
    "git_lfs_pointer": (
        lambda folder: (folder / WEIGHTS).write_bytes(b"version https://git-lfs"),
        "load-failed",
    ),
    "no_weights": (remove_weights, "load-failed"),
    "only_pickled_weights": (pickle_weights, "pickled-weights"),
    "missing_tensor": (remove_tensor, "incomplete"),
    "another_width": (lambda folder: edit_json(folder / "config.json", hidden_size=128), "shape-mismatch"),
    "more_layers_than_weights": (lambda folder: edit_json(folder / "config.json", num_hidden_layers=3), "incomplete"),
    "no_config": (remove_config, "not-found"),
    "config_is_not_json": (lambda folder: (folder / "config.json").write_text("{"), "load-failed"),
    "unknown_architecture": (lambda folder: edit_json(folder / "config.json", model_type="new"), "load-failed"),
    "no_tokenizer": (remove_tokenizer, "incomplete"),
    "no_end_token": (lambda folder: edit_json(folder / "tokenizer_config.json", eos_token=None), "no-end-token"),
    "token_ids_beyond_the_embeddings": (shrink_vocabulary, "tokenizer-mismatch"),
    "invalid_chat_template": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"),
        "chat-template-failed",
    ),
}
