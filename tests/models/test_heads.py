"""Test where a score is read, and score heads as reward models store them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from rlhf_cli.errors import ModelError
from rlhf_cli.models.heads import ScalarHead, has_score_head, load_score_head, score_index
from tests.support.issues import raises_issue
from tests.support.plain_models import Padded

PAD = 0


@pytest.mark.parametrize(
    ("row", "index"),
    [
        ([5, 6, 7, PAD, PAD], 2),  # right padding
        ([PAD, PAD, 5, 6, 7], 4),  # left padding
        ([5, PAD, 6, PAD, PAD], 2),  # a pad token inside does not end the row
        ([5, 6, 7, 8, 9], 4),
        ([PAD, PAD, PAD, PAD, PAD], 0),
    ],
)
def test_score_index_is_rightmost_token_that_is_not_padding(row: list[int], index: int) -> None:
    assert score_index(torch.tensor([row]), PAD).tolist() == [index]


def test_score_index_and_head_equal_scores_of_transformers(base_folder: Path, padded: Padded) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    model.config.pad_token_id = PAD
    for batch in padded.values():
        ids = batch["input_ids"].clone()
        ids[0, 4] = PAD  # inside a row
        with torch.no_grad():
            scores = model(**{**batch, "input_ids": ids}).logits[:, 0]  # (B,)
            hidden = model.get_decoder()(**{**batch, "input_ids": ids}).last_hidden_state
        head = ScalarHead(64)
        head.weight.data.copy_(model.score.weight[0])
        ours = head(hidden).gather(1, score_index(ids, PAD)[:, None])[:, 0]
        torch.testing.assert_close(ours, scores)  # the same sums in another order


def test_scalar_head_new_predicts_zero_and_keeps_leading_dimensions() -> None:
    head = ScalarHead(8)
    assert head(torch.randn(2, 3, 8)).tolist() == [[0.0] * 3] * 2


def test_scalar_head_on_16_bit_states_computes_in_float32() -> None:
    head = ScalarHead(8)
    assert head(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.float32


def test_load_score_head_whole_sharded_and_adapter_folders_give_the_head(tmp_path: Path) -> None:
    weight = torch.arange(4.0)[None]
    for name, file, key in [
        ("whole", "model.safetensors", "score.weight"),
        ("adapter", "adapter_model.safetensors", "base_model.model.score.weight"),
        ("sharded", "model-00002-of-00002.safetensors", "score.weight"),
    ]:
        (tmp_path / name).mkdir()
        save_file({key: weight}, tmp_path / name / file)
    index = {
        "weight_map": {"x": "model-00001-of-00002.safetensors", "score.weight": "model-00002-of-00002.safetensors"}
    }
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("whole", "adapter", "sharded"):
        assert has_score_head(tmp_path / name)
        assert load_score_head(tmp_path / name).weight.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_load_score_head_of_a_language_model_raises_issue(base_folder: Path) -> None:
    assert not has_score_head(base_folder)
    with raises_issue("model.not-a-reward-model", error=ModelError, location=str(base_folder)) as issues:
        load_score_head(base_folder)
    assert issues[0].message == "score head: not found."


def test_load_score_head_with_two_labels_raises_issue(tmp_path: Path) -> None:
    save_file({"score.weight": torch.zeros(2, 4)}, tmp_path / "model.safetensors")
    with raises_issue("model.not-a-reward-model", error=ModelError, location=str(tmp_path)) as issues:
        load_score_head(tmp_path)
    assert issues[0].message == "score head: wrong shape; found (2, 4), expected (1, hidden size)."


def test_load_score_head_damaged_file_raises_issue_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not safetensors")
    with raises_issue("model.load-failed", error=ModelError, location=str(path)) as issues:
        load_score_head(tmp_path)
    assert issues[0].message.startswith("weights: cannot be read: ")
