"""Resolve a branch or tag on the Hugging Face Hub to the commit that is recorded in the manifest and loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from rlhf_cli.errors import DataError, ModelError

RepoType = Literal["model", "dataset"]

MODEL_FILES = ("config.json", "adapter_config.json")  # a model or an adapter has one of them
TIMEOUT = 10  # seconds, of the request to the Hub
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ERROR = {"model": ModelError, "dataset": DataError}
_NOT_FOUND = {"model": "model.not-found", "dataset": "data.not-found"}
_GATED = {"model": "model.gated", "dataset": "data.gated"}
_UNKNOWN_REVISION = {"model": "model.unknown-revision", "dataset": "data.unknown-revision"}
_NOT_CACHED = {"model": "model.not-cached", "dataset": "data.not-cached"}
_LOCAL_ALTERNATIVE = {
    "model": "a local directory, written as ./directory",
    "dataset": "a local file or directory with `path:`",
}


def resolve_commit(repo_type: RepoType, repo: str, revision: str, *, location: str = "") -> str:
    """Return the commit of `revision`: from the Hub or, if the Hub cannot be reached, from the local cache.

    Args:
        repo_type: Whether `repo` is a model or a dataset.
        repo: Id of the repository, `owner/name`.
        revision: A branch, a tag or a commit.
        location: The recipe key that names the repository.

    Raises:
        ModelError: `repo` is a model, and the Hub lacks the repository or the revision or asks for a token, or the Hub
            cannot be reached and the revision is not cached.
        DataError: The same for a dataset.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    if ".." in revision or revision.startswith("/"):  # the cache would look for a file of that path
        message = f"invalid revision; found {revision}, expected a branch, a tag or a commit."
        raise _ERROR[repo_type](_UNKNOWN_REVISION[repo_type], message, location=location, hint="Use main, or a commit.")
    from huggingface_hub import constants

    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return _commit_from_hub(repo_type, repo, revision, location)
        except OSError as error:  # the base class of huggingface_hub's own network errors
            reason = f"the Hub cannot be reached ({type(error).__name__})"
        except Exception as error:  # errors of the transport below it, which share no public base class
            if not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            reason = f"the Hub cannot be reached ({type(error).__name__})"
    commit = _commit_from_cache(repo_type, repo, revision)
    if commit is None:
        message = f"{repo}@{revision}: not found in the local cache, and {reason}."
        hint = f"Go online once to download it, or use {_LOCAL_ALTERNATIVE[repo_type]}."
        raise _ERROR[repo_type](_NOT_CACHED[repo_type], message, location=location, hint=hint)
    return commit


def cached_file(repo: str, file: str, revision: str) -> Path | None:
    """Return a file of a model in the local cache, or None if it is not there. Does not contact the Hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(repo, file, revision=revision)
    except HFValidationError:  # reported when the commit is resolved
        return None
    return Path(path) if isinstance(path, str) else None


def _commit_from_hub(repo_type: RepoType, repo: str, revision: str, location: str) -> str:
    """Return the commit of `revision` on the Hub.

    Raises:
        ModelError: `repo` is a model, and the Hub does not have it or does not grant access.
        DataError: The same for a dataset.
        OSError: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    local = _LOCAL_ALTERNATIVE[repo_type]
    try:
        commit = HfApi().repo_info(repo, repo_type=repo_type, revision=revision, timeout=TIMEOUT).sha
    except GatedRepoError:
        hint = f"Accept its terms at https://huggingface.co/{repo} and set HF_TOKEN."
        message = f"{repo}: access to this {repo_type} is restricted on the Hub."
        raise _ERROR[repo_type](_GATED[repo_type], message, location=location, hint=hint) from None
    except RepositoryNotFoundError:
        hint = f"Check the id, or use {local}. A private {repo_type} needs HF_TOKEN."
        raise _ERROR[repo_type](
            _NOT_FOUND[repo_type], f"{repo}: {repo_type} not found on the Hub.", location=location, hint=hint
        ) from None
    except RevisionNotFoundError:
        hint = "Use an existing branch, tag or commit."
        message = f"{repo}: revision {revision} not found on the Hub."
        raise _ERROR[repo_type](_UNKNOWN_REVISION[repo_type], message, location=location, hint=hint) from None
    except HFValidationError:
        hint = f"Use owner/name, or {local}."
        message = f"{repo}: not a directory and not a valid Hub id; expected owner/name."
        raise _ERROR[repo_type](_NOT_FOUND[repo_type], message, location=location, hint=hint) from None
    assert commit is not None  # the Hub returns the commit of every existing revision
    return commit


def _commit_from_cache(repo_type: RepoType, repo: str, revision: str) -> str | None:
    """Return the commit that `revision` had when it was last downloaded, or None if it is not in the cache."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    for file in MODEL_FILES if repo_type == "model" else ():
        path = cached_file(repo, file, revision)
        if path is not None:
            return path.parent.name  # snapshots/<commit>/<file>
    # The name of a dataset's files is not known, and a scan reads the whole cache.
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError, OSError):  # missing, not a directory, or not readable
        return None
    for cached in cache.repos:
        if (cached.repo_type, cached.repo_id) == (repo_type, repo):
            return next((found.commit_hash for found in cached.revisions if revision in found.refs), None)
    return None
