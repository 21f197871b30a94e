"""The annotator's side: the next item, its answer, undo, and the guideline."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from rlhf_cli.errors import DataError
from rlhf_cli.feedback.store import Assignment, LeaseExpiredError, NotFoundError, Progress, Receipt
from rlhf_cli.feedback.types import Annotator, Answer
from rlhf_cli.feedback.web.items import InvalidAnswerError, answer_from_json, answer_to_json, format_tiers, view_of_item
from rlhf_cli.feedback.web.markdown import displayable, render
from rlhf_cli.feedback.web.site import Site, site_of

SKIP_REASONS = (
    "I cannot judge this: I lack the knowledge",
    "The prompt makes no sense",
    "I would rather not read this",
    "It is not in my language",
)
STRENGTH_NAMES = {
    -3: "Answer 1 is much better",
    -2: "Answer 1 is better",
    -1: "Answer 1 is slightly better",
    0: "Equally good",
    1: "Answer 2 is slightly better",
    2: "Answer 2 is better",
    3: "Answer 2 is much better",
}
MAX_KEY = 64  # characters of an idempotency key


class Change(NamedTuple):
    """A line of the guideline that was added or removed."""

    is_added: bool
    text: str


def annotate(request: Request, annotator: Annotator, _values: Any) -> Response:
    """Return the page with the annotator's current item."""
    site = site_of(request)
    assignments = site.store.assign(annotator.id)
    progress = site.store.progress(annotator.id)
    values = {
        **_fragment_values(assignments[0] if assignments else None, progress),
        "fragment": "item.html" if assignments else "done.html",
        "has_guideline": site.store.guideline() is not None,
        "skip_reasons": SKIP_REASONS,
    }
    return HTMLResponse(site.render("annotate.html", request, annotator, **values))


def next_item(request: Request, annotator: Annotator, _values: Any) -> Response:
    """Return the next item, other than the one on the page, as a fragment; or that none is left."""
    site, shown = site_of(request), request.query_params.get("after", "")
    assignments = site.store.assign(annotator.id, count=2 if shown else 1)
    others = [assignment for assignment in assignments if str(assignment.id) != shown]
    return HTMLResponse(_fragment(site, request, annotator, others[0] if others else None))


def item(request: Request, annotator: Annotator, _values: Any) -> Response:
    """Return one item of the annotator as a fragment."""
    site = site_of(request)
    assignment = site.store.assignment(annotator.id, request.path_params["id"])
    return HTMLResponse(_fragment(site, request, annotator, assignment))


def answer(request: Request, annotator: Annotator, values: Any) -> Response:
    """Store the answer to an item. The same key again has the same effect as once."""
    site, key = site_of(request), values.get("key")
    assignment = site.store.assignment(annotator.id, request.path_params["id"])
    try:
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
            raise InvalidAnswerError(f"key must be a text of 1 to {MAX_KEY} characters.")
        given = answer_from_json(values, assignment)
    except InvalidAnswerError as error:
        return JSONResponse({"message": f"The answer is invalid: {error}"}, 422)
    try:
        receipt = site.store.submit(annotator.id, assignment.id, given, key)
    except LeaseExpiredError:
        message = "You opened this item too long ago, and others have judged it since. Your answer was not needed."
        return JSONResponse({"message": message}, 409)
    except DataError as error:
        if error.issues[0].code != "feedback.invalid-answer":
            raise
        return JSONResponse({"message": f"The answer is invalid: {error.issues[0].message}"}, 422)
    progress = site.render("progress.html", request, annotator, progress=site.store.progress(annotator.id))
    notice = "You had answered this item already. The first answer counts." if receipt.is_duplicate else ""
    outcome = _outcome(site, request, annotator, assignment, receipt, given)
    current = site.store.guideline()
    return JSONResponse(
        {
            "judgment": receipt.judgment_id,
            "progress": progress,
            "guideline": current.sha256 if current else "",
            "notice": notice,
            "outcome": outcome,
        }
    )


def reopen(request: Request, annotator: Annotator, _values: Any) -> Response:
    """Open one of the annotator's judgments again, so that another answer can supersede it."""
    site = site_of(request)
    assignment = site.store.reopen(annotator.id, request.path_params["id"])
    return JSONResponse({"html": _fragment(site, request, annotator, assignment)})


def guideline(request: Request, annotator: Annotator, _values: Any) -> Response:
    """Return the guideline as a fragment, and what changed in it since the version that the query names."""
    site, since = site_of(request), request.query_params.get("since", "")
    current = site.store.guideline()
    if current is None:
        raise NotFoundError("guideline", "current")
    changes: list[Change] = []
    if since and since != current.sha256:
        try:
            earlier = site.store.guideline(since)
        except NotFoundError:  # the browser remembers a guideline of another store
            earlier = None
        changes = _changes(earlier.text, current.text) if earlier else []
    values = {"guideline": current, "text": render(current.text), "is_first": not since, "changes": changes}
    return HTMLResponse(site.render("guideline.html", request, annotator, **values))


def _changes(before: str, after: str) -> list[Change]:
    """Return the lines that were removed and added, in the order of the text."""
    lines = difflib.ndiff(displayable(before).splitlines(), displayable(after).splitlines())
    return [Change(line[0] == "+", line[2:]) for line in lines if line[0] in "+-" and line[2:].strip()]


def _fragment(site: Site, request: Request, annotator: Annotator, assignment: Assignment | None) -> str:
    progress = site.store.progress(annotator.id)
    name = "item.html" if assignment else "done.html"
    return site.render(name, request, annotator, **_fragment_values(assignment, progress))


def _fragment_values(assignment: Assignment | None, progress: Progress) -> dict[str, Any]:
    values: dict[str, Any] = {"progress": progress, "strength_names": STRENGTH_NAMES}
    if assignment is not None:
        saved = answer_to_json(assignment.answer, assignment) if assignment.answer else None
        view = view_of_item(assignment.item, assignment.task)
        values |= {"assignment": assignment, "item": assignment.item, "view": view, "saved": saved}
    return values


def _outcome(
    site: Site, request: Request, annotator: Annotator, assignment: Assignment, receipt: Receipt, given: Answer
) -> str:
    """Return how a qualification item was answered, as HTML; empty for other items."""
    feedback = receipt.feedback
    if feedback is None:
        return ""
    return site.render(
        "outcome.html",
        request,
        annotator,
        feedback=feedback,
        expected=format_tiers(feedback.tiers, assignment.order),
        given=_format_given(given, assignment),
        explanation=render(feedback.explanation) if feedback.explanation else "",
    )


def _format_given(given: Answer, assignment: Assignment) -> str:
    """Return an answer as text. The middle tier of `best-worst` was not compared, so it is not shown as tied."""
    if not given.tiers:
        return "skipped" if given.skip_reason else "all bad"
    if assignment.task == "best-worst" and len(given.tiers) > 1:
        best, worst = format_tiers(given.tiers[:1], assignment.order), format_tiers(given.tiers[-1:], assignment.order)
        return f"{best} best, {worst} worst"
    return format_tiers(given.tiers, assignment.order)
