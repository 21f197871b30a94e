"""The owner's overview, and the disagreements that experts settle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from rlhf_cli.feedback.store import DisputedItem, NotFoundError
from rlhf_cli.feedback.types import Annotator, Item, Judgment
from rlhf_cli.feedback.web.items import (
    MAX_TEXT,
    InvalidAnswerError,
    format_tiers,
    positions_of,
    tiers_from_positions,
    view_of_item,
)
from rlhf_cli.feedback.web.markdown import displayable
from rlhf_cli.feedback.web.site import site_of

ADOPT_KEYS = "abcdefgh"  # to adopt a judgment; r and the digits have another use
EXCERPT = 160  # characters of a prompt in the list


def overview(request: Request, annotator: Annotator, _values: Any) -> Response:
    """Return the overview: progress, agreement over time, and annotators."""
    site = site_of(request)
    status, figures = site.overview.measure(site.store)
    return HTMLResponse(site.render("overview.html", request, annotator, status=status, **figures._asdict()))


def disagreements(request: Request, annotator: Annotator, _values: Any) -> Response:
    """Return the list of items on which annotators disagree."""
    site = site_of(request)
    disputes = [
        {
            "id": entry.item.id,
            "excerpt": _excerpt(entry.item),
            "judgments": len(entry.judgments),
            "missing": entry.missing,
        }
        for entry in site.store.disputed()
    ]
    return HTMLResponse(site.render("disagreements.html", request, annotator, disputes=disputes))


def disagreement(request: Request, annotator: Annotator, _values: Any) -> Response:
    """Return one item with all judgments side by side. The expert, too, does not see which model wrote what."""
    site, disputes = site_of(request), site_of(request).store.disputed()
    entry = _find(disputes, request.path_params["id"])
    names = {
        person.id: person.name if annotator.role == "owner" else person.pseudonym for person in site.store.annotators()
    }
    view = view_of_item(entry.item)
    values = {
        "item": entry.item,
        "view": view,
        "answers": view.answers,
        "judgments": _judgments(entry, names),
        "left": len(disputes),
    }
    return HTMLResponse(site.render("disagreement.html", request, annotator, **values))


def decide(request: Request, annotator: Annotator, values: Any) -> Response:
    """Store the expert's decision, and return the address of the next disagreement."""
    site, item_id = site_of(request), request.path_params["id"]
    item = site.store.item(item_id)
    rationale = values.get("rationale") or ""
    try:
        tiers = tiers_from_positions(values.get("tiers"), [completion.id for completion in item.completions])
        if not isinstance(rationale, str) or len(rationale) > MAX_TEXT:
            raise InvalidAnswerError(f"rationale must be a text of at most {MAX_TEXT} characters.")
    except InvalidAnswerError as error:
        return JSONResponse({"message": f"The decision is invalid: {error}"}, 422)
    site.store.decide(annotator.id, item_id, tiers, rationale)
    left = site.store.disputed()
    return JSONResponse({"location": f"/disagreements/{left[0].item.id}" if left else "/disagreements"})


def _find(disputes: Sequence[DisputedItem], item_id: int) -> DisputedItem:
    for entry in disputes:
        if entry.item.id == item_id:
            return entry
    raise NotFoundError("disagreement", item_id)


def _excerpt(item: Item) -> str:
    """Return the beginning of the last turn of a prompt, on one line."""
    text = item.prompt if isinstance(item.prompt, str) else item.prompt[-1]["content"] if item.prompt else ""
    line = " ".join(displayable(text[: 2 * EXCERPT]).split())
    return f"{line[:EXCERPT]}…" if len(line) > EXCERPT else line


def _judgments(entry: DisputedItem, names: Mapping[int, str]) -> list[dict[str, Any]]:
    order = [completion.id for completion in entry.item.completions]
    keys = [*ADOPT_KEYS, *[""] * len(entry.judgments)]
    return [
        {
            "key": key,
            "name": names.get(judgment.annotator_id, "–"),
            "ranking": format_tiers(judgment.answer.tiers, order),
            "positions": positions_of(judgment.answer.tiers, order),
            "notes": _notes(judgment, order),
            "rationale": displayable(judgment.answer.rationale),
        }
        for key, judgment in zip(keys, entry.judgments, strict=False)
    ]


def _notes(judgment: Judgment, order: Sequence[int]) -> list[str]:
    """Return what a judgment says beside the ranking: strength, flags, ratings."""
    answer, notes = judgment.answer, []
    if answer.strength is not None and abs(answer.strength) > 1:
        notes.append({2: "clearly", 3: "by far"}[abs(answer.strength)])
    if answer.all_bad:
        notes.append("all bad")
    for completion, flags in sorted(answer.flags.items()):
        subject = f"{order.index(completion) + 1}" if completion else "item"
        notes.append(f"{subject} flagged {', '.join(flags)}")
    for completion, ratings in sorted(answer.criteria.items()):
        notes.append(f"{order.index(completion) + 1}: {', '.join(f'{name} {n}' for name, n in ratings.items())}")
    return notes
