"""Tasks of Label Studio with their annotations, as its JSON export has them and its import takes them.

The result of a `Ranker` is a list of ids, or a list of ids per bucket; that of a `Pairwise` is `left` or `right`.
https://labelstud.io/tags/ranker, https://labelstud.io/guide/task_format
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import read_messages
from rlhf_cli.data.fields import get_string
from rlhf_cli.data.issues import DroppedRowError, RowError
from rlhf_cli.data.published.format import one_name, read_list, read_object
from rlhf_cli.data.published.instructions import QUESTION
from rlhf_cli.data.rows import Text
from rlhf_cli.feedback.formats import rows
from rlhf_cli.feedback.formats.format import (
    FeedbackFormat,
    ParsedRow,
    finite,
    make_item,
    read_language,
    write_ranking,
)
from rlhf_cli.feedback.types import Answer, NewItem, NewJudgment, TaskKind, Tiers

INTERNAL_BUCKET = "_"  # holds the ids that were not moved to a bucket
BEST_WORST = ("best", "middle", "worst")  # buckets in their order
PAIRS = (("left", "right"), ("text1", "text2"), ("response1", "response2"), ("answer1", "answer2"))
BODY = ("body", "text", "html", "title")  # fields of an item of a List, of which the first one is its text
HINT = "Name the buckets rank_1, rank_2 and so on, best first, or best, middle and worst."
OWN = "rlhf"  # the key of a task's `meta` that only we write
META = ("kind", "answer", "explanation", "is_random")  # of an item, kept there
_NUMBERED = re.compile(r".*?(\d+)")
_RATING = re.compile(r"rating_(\d+)_(.+)", re.DOTALL)
_FLAGS = re.compile(r"flags_(\d+|item)")


def _read(fields: Fields) -> list[ParsedRow]:
    data = read_object(fields["data"], "data")
    meta = read_object(read_object(fields.get("meta") or {}, "meta").get(OWN) or {}, f"meta.{OWN}")
    given = [("human", entry) for entry in _entries(fields, "annotations")]
    given += [("ai", entry) for entry in _entries(fields, "predictions")]
    results = [result for _, entry in given for result in _results(entry)]
    prompt_name, prompt = _find_prompt(data)
    ids, texts, column = _find_completions(data, results, prompt_name)
    sources = meta.get("sources")
    used = {prompt_name, *column, "language", "field"}
    item = make_item(
        prompt,
        texts,
        [str(source) for source in sources] if isinstance(sources, list) and len(sources) == len(texts) else (),
        **rows.read_item_fields({**meta, "field": data.get("field")}, len(texts)),
        language=read_language(data.get("language")),
        extra={
            **{name: value for name, value in data.items() if name not in used},
            **read_object(meta.get("extra") or {}, f"meta.{OWN}.extra"),
        },
    )
    judgments, unusable = [], []
    for source, entry in given:
        try:
            judgments.append(_read_judgment(item, ids, entry, source))
        except DroppedRowError as reason:
            unusable.append(str(reason))
    return [ParsedRow(item, tuple(judgments), tuple(unusable))]


def _entries(fields: Fields, name: str) -> list[Fields]:
    return [read_object(entry, name) for entry in (read_list(fields, name) if fields.get(name) else [])]


def _results(entry: Fields) -> list[Fields]:
    return _entries(entry, "result")


def _find_prompt(data: Fields) -> tuple[str, Text]:
    """Return the name and the value of the field that holds the prompt."""
    name = next((name for name in (*QUESTION, "dialogue", "text") if data.get(name)), None)
    if name is None:
        message = f"data: prompt not found; found {', '.join(data)}, expected {', '.join(QUESTION)} or text."
        raise RowError("data.missing-field", message, "Rename the field that holds the prompt to prompt.")
    value = data[name]
    return name, read_messages(value, name) if isinstance(value, list) else get_string(data, name)


def _find_completions(data: Fields, results: list[Fields], prompt_name: str) -> tuple[list[str], list[Any], list[str]]:
    """Return the ids and the texts of the completions, and the names of the fields that hold them."""
    lists = {name: value for name, value in data.items() if isinstance(value, list) and value and name != prompt_name}
    for name, value in lists.items():
        if all(isinstance(entry, dict) and "id" in entry for entry in value):
            return [str(entry["id"]) for entry in value], [_body(entry) for entry in value], [name]
    named = [tuple(str(result.get("to_name", "")).split(",")) for result in results if result.get("type") == "pairwise"]
    for left, right in [*(pair for pair in named if len(pair) == 2), *PAIRS]:
        if left in data and right in data:
            return ["left", "right"], [data[left], data[right]], [left, right]
    message = f"data: completions not found; found {', '.join(data)}."
    hint = "Expected a list of objects {id, body}, or two fields such as text1 and text2."
    raise RowError("data.missing-field", message, hint)


def _body(entry: Fields) -> Any:
    return next((entry[name] for name in BODY if name in entry), None)


def _read_judgment(item: NewItem, ids: list[str], entry: Fields, source: Any) -> NewJudgment:
    """Return the judgment of an annotation or a prediction.

    Raises:
        DroppedRowError: It does not rank all completions.
    """
    results = {str(result.get("from_name")): result for result in _results(entry)}
    notes = {name: _text(result) for name, result in results.items() if result.get("type") == "textarea"}
    choices = {name: read_list(_value(r), "choices") for name, r in results.items() if r.get("type") == "choices"}
    is_skipped = bool(entry.get("was_cancelled"))
    all_bad = "all_bad" in choices
    tiers, task = ((), "rank") if is_skipped else _find_ranking(list(results.values()), ids, is_optional=all_bad)
    strengths = [_value(result) for name, result in results.items() if name == "strength"]
    fields: Fields = {
        "annotator": notes.get("annotator") or _annotator(entry, source),
        "task": next(iter(choices.get("task", [])), task),
        "ranking": write_ranking(tiers),
        "strength": strengths[0].get("number") if strengths else None,
        "all_bad": all_bad,
        "criteria": {},
        "flags": {},
        "rationale": notes.get("rationale", ""),
        "skip_reason": notes.get("skip_reason", "skipped in Label Studio") if is_skipped else "",
        "seconds": max(finite(entry.get("lead_time")) or 0.0, 0.0),
        "source": source,
        "created": str(entry.get("created_at") or ""),
    }
    for name, result in results.items():
        if match := _RATING.fullmatch(name):
            fields["criteria"].setdefault(match[1], {})[match[2]] = _value(result).get("rating")
        elif match := _FLAGS.fullmatch(name):
            fields["flags"]["-1" if match[1] == "item" else match[1]] = choices.get(name, [])
    return rows.read_judgment(item, fields)


def _value(result: Fields) -> Fields:
    return read_object(result.get("value"), "value")


def _text(result: Fields) -> str:
    """Return the text of a TextArea, which holds one text or several."""
    text = _value(result).get("text") or ""
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text)


def _annotator(entry: Fields, source: str) -> str:
    """Return a name without personal data: annotators have a numeric id, and may have an e-mail address."""
    if source == "ai":
        return str(entry.get("model_version") or "label-studio-prediction")
    user = entry.get("completed_by")
    number = user.get("id") if isinstance(user, dict) else user
    return "label-studio" if number is None else f"label-studio-{number}"


def _find_ranking(results: list[Fields], ids: list[str], *, is_optional: bool) -> tuple[Tiers, str]:
    """Return the tiers of a Ranker or a Pairwise, and the kind of task."""
    for result in results:
        if result.get("type") == "pairwise":
            left = rows.read_choice(_value(result), "selected", ("left", "right"), "") == "left"
            return (((0,), (1,)) if left else ((1,), (0,))), "pair"
        if result.get("type") == "ranker":
            buckets = _value(result).get("ranker")
            ranked, task = _read_buckets(buckets if isinstance(buckets, dict) else {"": buckets})
            unknown = [name for tier in ranked for name in tier if name not in ids]
            if unknown:
                message = f"ranker: unknown id {unknown[0]!r}; expected {', '.join(ids)}."
                raise RowError("feedback.invalid-answer", message, "Correct or remove the task.")
            tiers = tuple(tuple(sorted(map(ids.index, tier))) for tier in ranked if tier)
            if sum(map(len, tiers)) < len(ids) and not is_optional:
                raise DroppedRowError("an annotation that does not rank all completions")
            return tiers, task
    if is_optional:
        return (), "rank"
    raise DroppedRowError("an annotation without a ranking")


def _read_buckets(buckets: Fields) -> tuple[list[list[str]], str]:
    """Return the ids of each tier. In a single bucket, the order ranks; of several buckets, each is a tier."""
    named = {name: [str(given) for given in read_list(buckets, name)] for name in buckets if name != INTERNAL_BUCKET}
    if len(named) <= 1 and not any(name.startswith("rank_") for name in named):
        return [[name] for bucket in named.values() for name in bucket], "rank"
    if named.keys() <= {*BEST_WORST}:
        return [named[name] for name in BEST_WORST if name in named], "best-worst"
    numbers = {name: int(match[1]) for name in named if (match := _NUMBERED.fullmatch(name))}
    if len(set(numbers.values())) == len(named):
        return [named[name] for name in sorted(named, key=lambda name: numbers[name])], "rank"
    message = f"ranker: the order of the buckets is not known; found {', '.join(named)}."
    raise RowError("feedback.invalid-answer", message, HINT)


def _write(row: ParsedRow, lost: Counter[str]) -> list[Fields]:
    """Return an item as a task: judgments of people are annotations, those of models are predictions."""
    item = row.item
    texts = [_completion_text(completion.text) for completion in item.completions]
    if None in texts:
        lost["item whose completions have several messages"] += 1
        return []
    data: Fields = {
        "prompt": item.prompt,
        "completions": [{"id": str(n), "title": str(n), "body": text} for n, text in enumerate(texts)],
        "language": item.language,
        "field": item.field,
    }
    plain = rows.write_item(item)
    meta: Fields = {name: plain[name] for name in META if name in plain}
    meta["sources"] = [completion.source for completion in item.completions]
    meta["extra"] = dict(item.extra)
    task: Fields = {"data": data, "meta": {OWN: meta}, "annotations": [], "predictions": []}
    lost["repeated judgment"] += len(row.judgments) - len({judgment.annotator for judgment in row.judgments})
    for judgment in row.judgments:
        lost["order in which completions were shown"] += bool(judgment.order)
        lost["version of the guideline"] += bool(judgment.guideline)
        lost["principle of a model's judgment"] += bool(judgment.principle)
        entry: Fields = {"result": list(_write_results(judgment)), "created_at": judgment.created}
        if judgment.source == "ai":
            lost["time that a judgment took"] += bool(judgment.answer.seconds)
            task["predictions"].append({"model_version": judgment.annotator, **entry})
        else:
            is_skipped = bool(judgment.answer.skip_reason)
            entry.update(was_cancelled=is_skipped, ground_truth=False, lead_time=judgment.answer.seconds)
            task["annotations"].append(entry)
    return [task]


def _completion_text(text: Text) -> str | None:
    """Return the text of a completion, or None if it has several messages."""
    if isinstance(text, str):
        return text
    return text[0]["content"] if len(text) == 1 else None


def _write_results(judgment: NewJudgment) -> Iterator[Fields]:
    """Yield the results of a judgment, under the names of the controls in docs/annotation.md."""
    answer = judgment.answer
    if answer.tiers:
        names = _bucket_names(judgment.task, len(answer.tiers))
        buckets = {name: [str(n) for n in tier] for name, tier in zip(names, answer.tiers, strict=True)}
        yield _result("ranking", "ranker", {"ranker": buckets}, to_name="completions")
    if judgment.source == "human":
        yield _result("annotator", "textarea", {"text": [judgment.annotator]})
    yield _result("task", "choices", {"choices": [judgment.task]})
    if answer.strength is not None:
        yield _result("strength", "number", {"number": answer.strength})
    if answer.all_bad:
        yield _result("all_bad", "choices", {"choices": ["all bad"]})
    notes = {"rationale": answer.rationale, "skip_reason": answer.skip_reason}
    yield from (_result(name, "textarea", {"text": [text]}) for name, text in notes.items() if text)
    yield from _write_ratings_and_flags(answer)


def _bucket_names(task: TaskKind, count: int) -> list[str]:
    """Return the names of the buckets for `count` tiers, best first."""
    if task == "best-worst" and count > 1:
        return [*BEST_WORST[: count - 1], BEST_WORST[-1]]
    return [f"rank_{number}" for number in range(1, count + 1)]


def _write_ratings_and_flags(answer: Answer) -> Iterator[Fields]:
    for index, ratings in answer.criteria.items():
        for name, rating in ratings.items():
            yield _result(f"rating_{index}_{name}", "rating", {"rating": rating})
    for index, flags in answer.flags.items():
        yield _result(f"flags_{'item' if index < 0 else index}", "choices", {"choices": list(flags)})


def _result(name: str, kind: str, value: Fields, *, to_name: str = "prompt") -> Fields:
    return {"from_name": name, "to_name": to_name, "type": kind, "value": value}


FORMAT = FeedbackFormat(
    name="label-studio",
    origin="the JSON export of Label Studio, with `Ranker` or `Pairwise`",
    reading="A task per row. The bucket `_` is ignored; annotators are named by the number in `completed_by`.",
    columns=one_name("data", "annotations"),
    convert=_read,
    optional=("predictions", "meta", "id"),
    write=_write,
    keeps_other_columns=False,  # Label Studio's own, such as drafts, which name people
    remark="Annotations that do not rank all completions are skipped.",
)
