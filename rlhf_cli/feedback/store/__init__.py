"""The store of human feedback: assigns items, acknowledges judgments, and gives them out as a snapshot."""

from rlhf_cli.errors import RecipeError

try:
    import sqlalchemy  # noqa: F401
except ModuleNotFoundError:
    _HINT = "Install it with `pip install 'rlhf[annotate]'`."
    raise RecipeError("recipe.missing-package", "human feedback needs the package sqlalchemy.", hint=_HINT) from None

from rlhf_cli.feedback.store.errors import LeaseExpiredError, NotFoundError
from rlhf_cli.feedback.store.records import (
    AddResult,
    AnnotatorStatus,
    Assignment,
    DisputedItem,
    GroupStatus,
    Guideline,
    Invite,
    Progress,
    QualificationFeedback,
    QualificationState,
    Receipt,
    RecordResult,
    Session,
    Status,
)
from rlhf_cli.feedback.store.store import Store, open_store

__all__ = [
    "AddResult",
    "AnnotatorStatus",
    "Assignment",
    "DisputedItem",
    "GroupStatus",
    "Guideline",
    "Invite",
    "LeaseExpiredError",
    "NotFoundError",
    "Progress",
    "QualificationFeedback",
    "QualificationState",
    "Receipt",
    "RecordResult",
    "Session",
    "Status",
    "Store",
    "open_store",
]
