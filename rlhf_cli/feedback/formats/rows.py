"""Plain rows: a prompt with its completions, as the sample stage writes them, and perhaps judgments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import read_messages
from rlhf_cli.data.fields import get_string, get_value
from rlhf_cli.data.issues import DroppedRowError, RowError
from rlhf_cli.data.published.format import one_name, read_list, read_object
from rlhf_cli.data.rows import Text
from rlhf_cli.feedback.formats.format import (
    ITEM_COLUMNS,
    RANKING_HINT,
    FeedbackFormat,
    ParsedRow,
    finite,
    judge_item,
    make_item,
    read_language,
    read_ranking,
    read_text_field,
    write_ranking,
)
from rlhf_cli.feedback.types import (
    FLAGS,
    MAX_NAME,
    MAX_STRENGTH,
    RATINGS,
    Answer,
    ItemKind,
    NewItem,
    NewJudgment,
    Source,
    TaskKind,
    Tiers,
)

_BOOLEANS = {True: True, False: False, "true": True, "false": False}  # text as in CSV files


def read_rows(fields: Fields) -> list[ParsedRow]:
    """Return the item of a row, with its judgments."""
    own, others = _split_columns(fields)
    item = replace(read_item(own), extra=others)
    judgments = read_list(own, "judgments") if own.get("judgments") is not None else []
    unusable = () if item.language or not fields.get("language") else ("a language that is not a BCP 47 tag",)
    return [ParsedRow(item, tuple(read_judgment(item, judgment) for judgment in judgments), unusable)]


def _split_columns(fields: Fields) -> tuple[Fields, Fields]:
    """Return the columns that describe the item, and all others.

    A column of the prompts may share its name with one of ours, such as the `answer` that rewards compare with. It is
    kept under another name, such as `prompt.answer`.
    """
    foreign = set()
    if not isinstance(fields.get("answer"), list):
        foreign |= {"answer", "explanation"}
    if fields.get("kind") not in get_args(ItemKind):
        foreign.add("kind")
    if not read_language(fields.get("language")):
        foreign.add("language")
    own = {name: value for name, value in fields.items() if name in ITEM_COLUMNS and name not in foreign}
    others = {name: value for name, value in fields.items() if name not in ITEM_COLUMNS}
    shared = {f"prompt.{name}": fields[name] for name in ITEM_COLUMNS if name in foreign and fields.get(name)}
    return own, others | shared


def read_item(fields: Fields, kind: ItemKind | None = None) -> NewItem:
    """Return the item of a row. An item with an answer is a gold item, unless its column `kind` or `kind` says more.

    Raises:
        RowError: A field is missing or malformed, or two completions are equal.
    """
    completions = [_split_source(value, index) for index, value in enumerate(read_list(fields, "completions"))]
    given = read_item_fields(fields, len(completions))
    try:
        return make_item(
            read_prompt(fields),
            [text for text, _ in completions],
            [source for _, source in completions],
            language=_read_tag(fields, is_strict=kind is not None),
            **{**given, "kind": kind or given["kind"]},
        )
    except DroppedRowError as error:  # a row that people wrote, which they can correct
        message = f"completions: {error}; expected at least two different ones."
        raise RowError("feedback.invalid-item", message, "Correct or remove the row.") from None


def read_item_fields(fields: Fields, count: int) -> dict[str, Any]:
    """Return the optional fields of an item with `count` completions, apart from its language."""
    answer = fields.get("answer")
    kind = read_choice(fields, "kind", get_args(ItemKind), "item" if answer is None else "gold")
    if kind != "item" and answer is None:
        raise RowError("data.missing-field", f"answer: missing field of a {kind} item.", RANKING_HINT)
    return {
        "kind": kind,
        "field": read_name(fields, "field"),
        "answer": () if answer is None else read_ranking(answer, count, "answer"),
        "explanation": read_text_field(fields, "explanation"),
        "is_random": read_boolean(fields, "is_random", default=True),
    }


def read_prompt(fields: Fields) -> Text:
    """Return the prompt: text, which is used verbatim, or messages."""
    value = get_value(fields, "prompt")
    return read_messages(value, "prompt") if isinstance(value, list) else get_string(fields, "prompt")


def _split_source(value: Any, index: int) -> tuple[Any, str]:
    """Return the text or messages of a completion and its source: `{text, source}`, or the text or messages only."""
    if not isinstance(value, dict):
        return value, ""
    name = f"completions[{index}]"
    unknown = value.keys() - {"text", "source"}
    if "text" not in value or unknown:
        message = f"{name}: found {', '.join(value)}; expected text and, optionally, source."
        raise RowError("feedback.invalid-item", message, "Correct or remove the row.")
    return value["text"], read_text_field(value, "source")


def read_name(fields: Fields, name: str) -> str:
    """Return an optional text of limited length, or ""."""
    value = read_text_field(fields, name)
    if len(value) > MAX_NAME:
        message = f"{name}: found {len(value)} characters, expected at most {MAX_NAME}."
        raise RowError("feedback.invalid-item", message, "Shorten it.")
    return value


def _read_tag(fields: Fields, *, is_strict: bool) -> str:
    given = read_text_field(fields, "language") if is_strict else fields.get("language")
    language = read_language(given)
    if is_strict and given and not language:
        message = f"language: found {given!r}, expected a BCP 47 tag."
        raise RowError("feedback.invalid-item", message, "Write a tag such as en or pt-BR.")
    return language


def read_judgment(item: NewItem, value: Any) -> NewJudgment:
    """Return a judgment of `item`, from an object with annotator and ranking.

    Raises:
        RowError: A field is missing or malformed.
    """
    fields = read_object(value, "judgments")
    count = len(item.completions)
    strength = read_integer(fields, "strength", range(-MAX_STRENGTH, MAX_STRENGTH + 1))
    task: TaskKind = read_choice(fields, "task", get_args(TaskKind), "rank" if strength is None else "pair")
    answer = Answer(
        tiers=_read_tiers(fields, count, task),
        strength=strength,
        all_bad=read_boolean(fields, "all_bad", default=False),
        criteria={index: _read_ratings(given) for index, given in _by_index(fields, "criteria", count).items()},
        flags={index: _read_flags(given) for index, given in _by_index(fields, "flags", count).items()},
        rationale=read_text_field(fields, "rationale"),
        skip_reason=read_text_field(fields, "skip_reason"),
        seconds=_read_seconds(fields),
    )
    order = fields.get("order")
    return judge_item(
        item,
        read_name({"annotator": get_string(fields, "annotator")}, "annotator"),
        answer,
        task=task,
        order=tuple(index for tier in read_ranking(order, count, "order") for index in tier) if order else (),
        source=read_choice(fields, "source", get_args(Source), "human"),
        principle=read_name(fields, "principle"),
        guideline=read_name(fields, "guideline"),
        created=read_name(fields, "created"),
        key=read_name(fields, "key"),
    )


def _read_tiers(fields: Fields, count: int, task: TaskKind) -> Tiers:
    """Return the tiers of a judgment: none if the item was skipped, and maybe none if all completions are bad."""
    ranking = fields.get("ranking")
    is_skipped = bool(fields.get("skip_reason"))
    if not ranking and (is_skipped or read_boolean(fields, "all_bad", default=False)):
        return ()
    tiers = read_ranking(ranking, count, "ranking")
    sizes = [len(tier) for tier in tiers]
    if is_skipped:
        problem = "found a value, expected none because of skip_reason"
    elif task == "best-worst" and (not 2 <= len(sizes) <= 3 or sizes[0] > 1 or sizes[-1] > 1):
        problem = f"found {ranking!r}, expected one best and one worst completion"
    else:
        return tiers
    raise RowError("feedback.invalid-answer", f"ranking: {problem}.", RANKING_HINT)


def read_choice(fields: Fields, name: str, choices: tuple[Any, ...], default: Any) -> Any:
    """Return an optional value that must be one of `choices`."""
    value = read_text_field(fields, name, default)
    if value in choices:
        return value
    message = f"{name}: found {value!r}, expected {', '.join(choices)}."
    raise RowError("feedback.invalid-item", message, "Correct or remove it.")


def read_boolean(fields: Fields, name: str, *, default: bool) -> bool:
    """Return an optional true or false, which may be text as in CSV files."""
    value = fields.get(name)
    if value is None or value == "":
        return default
    key = value.lower() if isinstance(value, str) else value
    if isinstance(key, bool | str) and key in _BOOLEANS:
        return _BOOLEANS[key]
    message = f"{name}: found {value!r}, expected true or false."
    raise RowError("data.wrong-type", message, "Correct or remove it.")


def read_integer(fields: Fields, name: str, allowed: range) -> int | None:
    """Return an optional whole number in a range, or None if it is missing."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    number = finite(value)
    if number is not None and number == int(number) and int(number) in allowed:
        return int(number)
    message = f"{name}: found {value!r}, expected a whole number from {allowed[0]} to {allowed[-1]}."
    raise RowError("feedback.invalid-answer", message, "Correct or remove it.")


def _read_seconds(fields: Fields) -> float:
    value = fields.get("seconds")
    number = 0.0 if value is None or value == "" else finite(value)
    if number is None or number < 0:
        message = f"seconds: found {value!r}, expected a number from 0."
        raise RowError("feedback.invalid-answer", message, "Correct or remove it.")
    return number


def _by_index(fields: Fields, name: str, count: int) -> Mapping[int, Any]:
    """Return an optional object whose keys are indices of completions; for flags, -1 means the whole item."""
    value = fields.get(name)
    first = -1 if name == "flags" else 0
    by_index = {}
    for key, given in read_object(value, name).items() if value else ():
        index = int(key) if key.removeprefix("-").isdecimal() and len(key) < 10 else None
        if index is None or not first <= index < count:
            message = f"{name}: unknown completion {key!r}; expected an index from {first} to {count - 1}."
            raise RowError("feedback.invalid-answer", message, "Correct or remove it.")
        by_index[index] = given
    return by_index


def _read_ratings(value: Any) -> dict[str, int]:
    """Return the rating of a completion by criterion."""
    ratings = {
        name: read_integer({name: given}, name, RATINGS) for name, given in read_object(value, "criteria").items()
    }
    return {name: rating for name, rating in ratings.items() if rating is not None}


def _read_flags(value: Any) -> tuple[Any, ...]:
    flags = value if isinstance(value, list) else [value]
    unknown = [flag for flag in flags if flag not in FLAGS]
    if unknown:
        message = f"flags: unknown flag {unknown[0]!r}; expected {', '.join(FLAGS)}."
        raise RowError("feedback.invalid-answer", message, "Correct or remove it.")
    return tuple(flags)


def write_row(row: ParsedRow, _lost: Counter[str]) -> list[Fields]:
    """Return an item with its judgments as `read_rows` reads it. Nothing is lost."""
    fields = write_item(row.item)
    fields["completions"] = [
        {"text": completion.text, "source": completion.source} if completion.source else completion.text
        for completion in row.item.completions
    ]
    judgments = [write_judgment(judgment) for judgment in row.judgments]
    return [{**fields, "judgments": judgments} if judgments else fields]


def write_item(item: NewItem) -> Fields:
    """Return an item without its completions. Fields that have their default value are left out."""
    values = {
        "prompt": item.prompt,
        "kind": "" if item.kind == ("gold" if item.answer else "item") else item.kind,
        "language": item.language,
        "field": item.field,
        "answer": write_ranking(item.answer),
        "explanation": item.explanation,
    }
    fields = {name: value for name, value in values.items() if value}
    return {**item.extra, **fields, **({} if item.is_random else {"is_random": False})}


def write_judgment(judgment: NewJudgment) -> Fields:
    """Return a judgment without its item. Fields that have their default value are left out."""
    answer = judgment.answer
    task = "rank" if answer.strength is None else "pair"
    values = {
        "task": "" if judgment.task == task else judgment.task,
        "ranking": write_ranking(answer.tiers),
        "all_bad": answer.all_bad,
        "criteria": {str(index): dict(given) for index, given in answer.criteria.items()},
        "flags": {str(index): list(given) for index, given in answer.flags.items()},
        "rationale": answer.rationale,
        "skip_reason": answer.skip_reason,
        "seconds": answer.seconds,
        "source": "" if judgment.source == "human" else judgment.source,
        "principle": judgment.principle,
        "order": list(judgment.order),
        "guideline": judgment.guideline,
        "created": judgment.created,
        "key": judgment.key,
    }
    fields: Fields = {name: value for name, value in values.items() if value}
    strength = {} if answer.strength is None else {"strength": answer.strength}
    return {"annotator": judgment.annotator, **fields, **strength}


FORMAT = FeedbackFormat(
    name="jsonl",
    origin="`rlhf sample`, `rlhf annotate select`, your own files",
    reading="An item per row. `completions` is a list of texts or of `{text, source}`; `judgments`, if any, is a list.",
    columns=one_name("prompt", "completions"),
    convert=read_rows,
    optional=ITEM_COLUMNS[2:],
    write=write_row,
    keeps_other_columns=False,
)
