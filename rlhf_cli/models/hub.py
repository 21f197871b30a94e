"""What a branch or tag on the Hugging Face hub is now: the commit that goes into lineage, and that is then loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from rlhf_cli.errors import DataError, ModelError

_COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 10  # seconds


def commit_of(kind: Literal["model", "dataset"], repo: str, revision: str, *, location: str = "") -> str:
    """The commit that `revision` names, from the hub or, where it cannot be reached, from the local cache.

    `where`: the recipe's key that names it.

    Raises:
        ModelError, DataError: the hub has no such repository or revision, or wants a token; or it cannot be reached
            and nothing is cached. Told here, before torch is imported.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    failure, instead = (
        (ModelError, "a folder as ./folder") if kind == "model" else (DataError, "`path:`, a file or folder")
    )
    why = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            found = HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=TIMEOUT).sha
            assert found is not None  # the hub gives one for every revision that exists
            return found
        except GatedRepoError:
            hint = f"Accept its terms on https://huggingface.co/{repo} and set HF_TOKEN."
            raise failure(f"{repo} is gated on the hub.", location=location, hint=hint) from None
        except RepositoryNotFoundError:
            hint = f"Check the id, or give {instead}. A private one needs HF_TOKEN."
            raise failure(f"there is no {kind} {repo} on the hub.", location=location, hint=hint) from None
        except RevisionNotFoundError:
            hint = "Name a branch, tag or commit."
            raise failure(f"{repo} has no revision {revision}.", location=location, hint=hint) from None
        except HFValidationError:
            hint = f"Write owner/name, or give {instead}."
            message = f"{repo} is neither a folder nor the id of a {kind} on the hub."
            raise failure(message, location=location, hint=hint) from None
        except OSError as error:  # what every failure of the network is to huggingface_hub's client …
            why = f"the hub cannot be reached ({type(error).__name__})"
        except Exception as error:  # … but for those of the transport below it, which share no public class
            if not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            why = f"the hub cannot be reached ({type(error).__name__})"
    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}" / "refs" / revision
    if cached.is_file():
        return cached.read_text().strip()
    hint = f"Go online once, or give {instead}."
    raise failure(f"{repo} is not in the local cache, and {why}.", location=location, hint=hint)
