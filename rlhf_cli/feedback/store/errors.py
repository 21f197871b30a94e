"""The errors that callers of the store distinguish. All others are DataErrors with a code of the group `feedback`."""

from __future__ import annotations

from rlhf_cli.errors import DataError


class NotFoundError(DataError):
    """Raised if an item, an assignment, a judgment or an annotator does not exist, or belongs to another annotator."""

    def __init__(self, kind: str, name: object, *, hint: str = "") -> None:
        super().__init__("feedback.not-found", f"{kind} not found: {name}.", hint=hint)

    def __reduce__(self) -> tuple[type[DataError], tuple[object]]:
        """Pickle the issues: the arguments of the constructor differ from those of the base class."""
        return DataError, (self.issues,)


class LeaseExpiredError(DataError):
    """Raised if an answer arrives after the lease expired and the item got enough judgments by others."""

    def __init__(self) -> None:
        message = "the time to answer this item is over, and others have judged it since; not stored."
        super().__init__("feedback.lease-expired", message, hint="Continue with the next item.")

    def __reduce__(self) -> tuple[type[DataError], tuple[object]]:
        """Pickle the issues: the arguments of the constructor differ from those of the base class."""
        return DataError, (self.issues,)
