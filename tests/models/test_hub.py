"""Test that Hub revisions resolve to commits, offline too, and that a missing repository or revision is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.errors import DataError, ModelError
from rlhf_cli.models.hub import resolve_commit
from tests.support.issues import raises_issue

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a cache that holds only `main` of org/model."""
    from huggingface_hub import constants

    repo = tmp_path / "models--org--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go online, to a port on which nothing listens."""
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    init = HfApi.__init__

    def init_elsewhere(self: HfApi, *_: object, **__: object) -> None:
        init(self, endpoint="http://127.0.0.1:9")  # the discard port

    monkeypatch.setattr(HfApi, "__init__", init_elsewhere)


def test_resolve_commit_offline_returns_cached_commit() -> None:
    assert resolve_commit("model", "org/model", "main") == COMMIT


def test_resolve_commit_of_a_commit_returns_it_unchanged() -> None:
    assert resolve_commit("model", "other/model", COMMIT) == COMMIT


def test_resolve_commit_offline_revision_not_cached_raises_issue() -> None:
    with raises_issue("model.not-cached", error=ModelError, location="base.model") as issues:
        resolve_commit("model", "org/model", "dev", location="base.model")
    assert issues[0].message == "org/model@dev: not found in the local cache, and HF_HUB_OFFLINE is set."
    with raises_issue("data.not-cached", error=DataError):
        resolve_commit("dataset", "org/model", "main")


@pytest.mark.parametrize("revision", ["../../../../../etc/hostname", "/etc/hostname", "refs/../../x"])
def test_resolve_commit_revision_that_is_a_path_is_refused_before_the_cache_is_read(revision: str) -> None:
    with raises_issue("model.unknown-revision", error=ModelError, location="base.model"):
        resolve_commit("model", "org/model", revision, location="base.model")


def test_resolve_commit_without_a_cache_raises_issue(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "missing"))
    with raises_issue("model.not-cached", error=ModelError):
        resolve_commit("model", "org/model", "main")


@pytest.mark.usefixtures("unreachable_hub")
def test_resolve_commit_unreachable_hub_falls_back_to_cache() -> None:
    assert resolve_commit("model", "org/model", "main") == COMMIT


@pytest.mark.usefixtures("unreachable_hub")
def test_resolve_commit_unreachable_hub_and_not_cached_raises_issue() -> None:
    with raises_issue("model.not-cached", error=ModelError) as issues:
        resolve_commit("model", "org/model", "dev")
    assert "the Hub cannot be reached" in issues[0].message
    assert issues[0].hint == "Go online once to download it, or use a local directory, written as ./directory."


@pytest.mark.usefixtures("unreachable_hub")
def test_resolve_commit_invalid_id_raises_issue() -> None:
    with raises_issue("model.not-found", error=ModelError) as issues:
        resolve_commit("model", "a/b/c", "main")
    assert issues[0].message == "a/b/c: not a directory and not a valid Hub id; expected owner/name."
