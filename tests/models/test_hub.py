"""Hub revisions become commits, offline too; what the hub has not is told before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.errors import DataError, ModelError
from rlhf_cli.models.hub import commit_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds `main` of org/model alone."""
    from huggingface_hub import constants

    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT + "\n")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_revision_is_the_commit_that_the_cache_tells_when_offline() -> None:
    assert commit_of("model", "org/model", "main") == COMMIT
    assert commit_of("model", "other/model", COMMIT) == COMMIT


def test_what_is_not_cached_is_refused_when_offline() -> None:
    with pytest.raises(ModelError, match="org/model is not in the local cache, and HF_HUB_OFFLINE is set"):
        commit_of("model", "org/model", "dev")
    with pytest.raises(DataError, match="org/rows is not in the local cache"):
        commit_of("dataset", "org/rows", "main")


def test_a_hub_that_cannot_be_reached_leaves_the_cache_and_gives_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    real = HfApi.__init__

    def elsewhere(self: HfApi, *args: object, **kwargs: object) -> None:
        real(self, endpoint="http://127.0.0.1:9")  # the discard port, where nothing listens

    monkeypatch.setattr(HfApi, "__init__", elsewhere)
    assert commit_of("model", "org/model", "main") == COMMIT
    with pytest.raises(ModelError, match="the hub cannot be reached") as raised:
        commit_of("model", "org/model", "dev")
    assert "Go online once" in raised.value.issues[0].hint


def test_what_is_no_id_says_how_one_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match="neither a folder nor the id"):
        commit_of("model", "a/b/c", "main")
