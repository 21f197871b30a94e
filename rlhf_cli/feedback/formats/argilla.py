"""Records of Argilla 2 as its SDK writes them to JSON, whose responses are rankings or the name of the best field.

https://docs.argilla.io/latest/how_to_guides/import_export
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import read_messages
from rlhf_cli.data.fields import get_string
from rlhf_cli.data.issues import RowError
from rlhf_cli.data.published.format import one_name, read_list, read_object
from rlhf_cli.data.published.instructions import QUESTION
from rlhf_cli.feedback.formats import rows
from rlhf_cli.feedback.formats.format import FeedbackFormat, ParsedRow, finite, make_item, read_language
from rlhf_cli.feedback.types import NewItem, NewJudgment, TaskKind

COMPLETION = re.compile(r"(completion|response|answer|generation)[-_ ]?\w{1,3}", re.IGNORECASE)
OWN = "rlhf_"  # before the names of metadata that only we write
PLAIN = ("language", "field")  # metadata that others may write, too
RANKING = "ranking"  # the question that we write
RATIONALE = "rationale"
USERS = uuid.UUID("8f0a4b52-6c0f-5d0e-9a53-2f6c1b7d3e10")  # namespace of the user ids that stand for our pseudonyms
REMARK = "Record JSON of Argilla holds neither ties nor whether a response was submitted, a draft or discarded."


def _read(fields: Fields) -> list[ParsedRow]:
    given = read_object(fields["fields"], "fields")
    metadata = read_object(fields.get("metadata") or {}, "metadata")
    responses = read_object(fields["responses"] or {}, "responses")
    names = _completion_names(given)
    prompt_name = next((name for name in (*QUESTION, "text") if given.get(name) and name not in names), None)
    if prompt_name is None or len(names) < 2:
        message = f"fields: found {', '.join(given)}; expected prompt and two or more such as completion_0."
        raise RowError("data.missing-field", message, "Rename the fields.")
    prompt = given[prompt_name]
    sources = metadata.get(f"{OWN}sources")
    item = make_item(
        read_messages(prompt, prompt_name) if isinstance(prompt, list) else get_string(given, prompt_name),
        [given[name] for name in names],
        [str(source) for source in sources] if isinstance(sources, list) and len(sources) == len(names) else (),
        **rows.read_item_fields(_item_fields(metadata), len(names)),
        language=read_language(metadata.get("language")),
        extra={
            **{name: value for name, value in given.items() if name not in (*names, prompt_name)},
            **{name: value for name, value in metadata.items() if not name.startswith(OWN) and name not in PLAIN},
        },
    )
    annotators = metadata.get(f"{OWN}annotators")
    pseudonyms = {str(_user(str(name))): str(name) for name in annotators} if isinstance(annotators, list) else {}
    judgments, unusable = [], []
    for judgment, reason in _read_responses(item, names, responses, pseudonyms):
        judgments += [] if judgment is None else [judgment]
        unusable += [reason] if reason else []
    for question, value in read_object(fields.get("suggestions") or {}, "suggestions").items():
        suggestion = read_object(value, question)
        ranking = _ranking(suggestion.get("value"), names)
        if ranking is not None:
            agent = str(suggestion.get("agent") or "argilla-suggestion")
            judgments.append(_judgment(item, annotator=agent, ranking=ranking, source="ai"))
    return [ParsedRow(item, tuple(judgments), tuple(unusable))]


def _completion_names(given: Fields) -> list[str]:
    return [name for name in given if COMPLETION.fullmatch(name)]


def _item_fields(metadata: Fields) -> Fields:
    """Return the fields of an item from the metadata, where lists cannot be nested."""
    fields = {name: metadata.get(OWN + name) for name in ("kind", "explanation", "is_random")}
    answer = metadata.get(f"{OWN}answer")
    tiers = [_tier(text) for text in answer] if isinstance(answer, list) else None
    return {**fields, "field": metadata.get("field"), "answer": tiers}


def _tier(text: Any) -> Any:
    """Return a tier of an answer, which is text such as `0 2` because metadata cannot hold lists in lists."""
    return [int(number) if number.isdecimal() else number for number in str(text).split()]


def _read_responses(
    item: NewItem, names: list[str], responses: Fields, pseudonyms: dict[str, str]
) -> Iterable[tuple[NewJudgment | None, str]]:
    """Yield the judgment of each user, or why there is none."""
    by_user: dict[str, Fields] = {}
    for question in responses:
        for entry in read_list(responses, question):
            response = read_object(entry, question)
            by_user.setdefault(str(response.get("user_id")), {})[question] = response.get("value")
    for user, answers in by_user.items():
        rankings = [ranking for value in answers.values() if (ranking := _ranking(value, names)) is not None]
        if not rankings:
            yield None, "a response without a ranking of all completions"
            continue
        text = answers.get(RATIONALE)
        rationale = text if isinstance(text, str) else ""
        name = pseudonyms.get(user) or ("argilla" if user in ("None", "") else f"argilla-{user}")
        fields = {
            "annotator": name,
            "ranking": rankings[0],
            "rationale": rationale if isinstance(rationale, str) else "",
        }
        yield rows.read_judgment(item, fields), "" if len(rankings) == 1 else "a second ranking in one response"


def _judgment(item: NewItem, **fields: Any) -> NewJudgment:
    return rows.read_judgment(item, {"task": _task(len(item.completions)), **fields})


def _ranking(value: Any, names: list[str]) -> list[Any] | None:
    """Return a ranking of all completions, or None if the value is none.

    It is a list of names of fields, best first, or of `{value, rank}` as in the API, or the name of the better of two.
    """
    if isinstance(value, str) and value in names and len(names) == 2:
        first = names.index(value)
        return [first, 1 - first]
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(entry, dict) and finite(entry.get("rank")) is not None for entry in value):
        ranks: dict[float | None, list[Any]] = {}
        for entry in value:
            ranks.setdefault(finite(entry["rank"]), []).append(entry.get("value"))
        tiers = [ranks[rank] for rank in sorted(ranks, key=lambda rank: rank or 0.0)]
    else:
        tiers = [[entry] for entry in value]
    placed = [name for tier in tiers for name in tier]
    if len(placed) != len(names) or any(name not in placed for name in names):
        return None
    return [[names.index(name) for name in tier] for tier in tiers]


def _write(row: ParsedRow, lost: Counter[str]) -> list[Fields]:
    """Return an item as a record: judgments of people are responses, that of a model is a suggestion."""
    item = row.item
    names = [f"completion_{index}" for index in range(len(item.completions))]
    texts = [c.text if isinstance(c.text, str) else c.text[-1]["content"] for c in item.completions]
    if any(not isinstance(completion.text, str) and len(completion.text) > 1 for completion in item.completions):
        lost["item whose completions have several messages"] += 1
        return []
    responses: Fields = {}
    suggestions: Fields = {}
    annotators = []
    for judgment in row.judgments:
        if _has_ties(judgment, lost):
            continue
        _count_lost(judgment, lost)
        value = [names[index] for tier in judgment.answer.tiers for index in tier]
        if judgment.source == "ai":
            if suggestions:
                lost["judgment of a second model"] += 1
                continue
            suggestions[RANKING] = {"value": value, "score": None, "agent": judgment.annotator}
            lost["rationale of a model"] += bool(judgment.answer.rationale)
            continue
        if judgment.annotator in annotators:
            lost["repeated judgment"] += 1
            continue
        annotators.append(judgment.annotator)
        user = str(_user(judgment.annotator))
        responses.setdefault(RANKING, []).append({"value": value, "user_id": user})
        if judgment.answer.rationale:
            responses.setdefault(RATIONALE, []).append({"value": judgment.answer.rationale, "user_id": user})
    metadata = _metadata(item, lost)
    if annotators:
        metadata[f"{OWN}annotators"] = annotators
    fields = {"prompt": item.prompt, **dict(zip(names, texts, strict=True))}
    return [{"fields": fields, "metadata": metadata, "suggestions": suggestions, "responses": responses, "vectors": {}}]


def _user(pseudonym: str) -> uuid.UUID:
    """Return the id of a user, which must be a UUID, for a pseudonym."""
    return uuid.uuid5(USERS, pseudonym)


def _has_ties(judgment: NewJudgment, lost: Counter[str]) -> bool:
    """Return whether a judgment is left out because it is no strict ranking."""
    if judgment.answer.skip_reason or not judgment.answer.tiers:
        lost["skipped item, or item of which all completions are bad"] += 1
    elif any(len(tier) > 1 for tier in judgment.answer.tiers):
        lost["judgment with ties or of best and worst"] += 1
    else:
        return False
    return True


def _task(count: int) -> TaskKind:
    """Return the kind of task of a strict ranking of `count` completions."""
    return "pair" if count == 2 else "rank"


def _count_lost(judgment: NewJudgment, lost: Counter[str]) -> None:
    """Count the parts of a judgment that a record cannot hold."""
    answer = judgment.answer
    placed = sum(map(len, answer.tiers))
    lost["strength"] += answer.strength is not None
    lost["kind of task"] += judgment.task != _task(placed) and answer.strength is None
    lost["mark that all completions are bad"] += answer.all_bad
    lost["rating"] += bool(answer.criteria)
    lost["flag"] += bool(answer.flags)
    lost["time of a judgment"] += bool(answer.seconds or judgment.created)
    lost["order in which completions were shown"] += bool(judgment.order)
    lost["version of the guideline"] += bool(judgment.guideline)
    lost["principle of a model's judgment"] += bool(judgment.principle)


def _metadata(item: NewItem, lost: Counter[str]) -> Fields:
    """Return the metadata of a record: texts, numbers and lists of texts."""
    plain = rows.write_item(item)
    metadata: Fields = {name: plain[name] for name in PLAIN if name in plain}
    metadata |= {OWN + name: plain[name] for name in ("kind", "explanation") if name in plain}
    if item.answer:
        metadata[f"{OWN}answer"] = [" ".join(map(str, tier)) for tier in item.answer]
    if not item.is_random:
        metadata[f"{OWN}is_random"] = "false"
    if any(completion.source for completion in item.completions):
        metadata[f"{OWN}sources"] = [completion.source for completion in item.completions]
    for name, value in item.extra.items():
        if isinstance(value, str | int | float) and not isinstance(value, bool) and name not in metadata:
            metadata[name] = value
        else:
            lost["column of an item that is not text or a number"] += 1
    return metadata


FORMAT = FeedbackFormat(
    name="argilla",
    origin="records of Argilla 2 that its SDK wrote with `to_json`",
    reading="Fields such as `completion_0` or `response1` are completions; a response ranks their names.",
    columns=one_name("fields", "responses"),
    convert=_read,
    optional=("id", "metadata", "suggestions", "vectors", "_server_id", "status"),
    write=_write,
    remark=REMARK,
)
