"""Write the items and judgments of a store for other tools, under pseudonyms."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rlhf_cli.data.batches import Fields
from rlhf_cli.errors import DiskError
from rlhf_cli.feedback.formats.format import FeedbackFormat, ParsedRow
from rlhf_cli.feedback.formats.registry import FORMATS
from rlhf_cli.feedback.types import Item, Judgment, NewCompletion, NewItem, NewJudgment, Snapshot, Tiers

AUTHOR = "author"
WRITABLE: Mapping[str, FeedbackFormat] = {name: known for name, known in FORMATS.items() if known.write is not None}


class DumpResult(NamedTuple):
    """What was written.

    Attributes:
        items: Number of items.
        judgments: Number of judgments.
        lost: What the format cannot hold: how often, by description.
    """

    items: int
    judgments: int
    lost: Mapping[str, int]


def dump(snapshot: Snapshot, row_format: FeedbackFormat, path: Path) -> DumpResult:
    """Write a snapshot to a file, which replaces an existing file only when it is complete.

    Raises:
        DiskError: The file cannot be written.
    """
    assert row_format.write is not None
    lost: Counter[str] = Counter()
    if snapshot.decisions:
        lost["decision of an expert"] += len(snapshot.decisions)
    rows = to_rows(snapshot)
    written = [line for row in rows for line in row_format.write(row, lost)]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            _write_lines(row_format.name, written, file)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        message = f"the file cannot be written: {error.strerror}."
        raise DiskError("disk.not-writable", message, location=str(path), hint="Choose another file.") from None
    return DumpResult(len(rows), sum(len(row.judgments) for row in rows), {name: n for name, n in lost.items() if n})


def _write_lines(name: str, written: Sequence[Fields], file: TextIO) -> None:
    """Write rows as JSON lines, as a table or as a JSON list. JSON is ASCII, so that lone surrogates survive."""
    if name == "csv":
        columns = list(dict.fromkeys(column for line in written for column in line))
        file.write("\ufeff")  # without it, Excel does not read the file as UTF-8
        writer = csv.DictWriter(file, columns, restval="", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(written)
    elif name == "jsonl":
        file.writelines(json.dumps(line) + "\n" for line in written)
    else:
        json.dump(written, file, indent=1)


def to_rows(snapshot: Snapshot) -> list[ParsedRow]:
    """Return the items of a snapshot with their judgments, with indices of completions instead of ids."""
    pseudonyms = {annotator.id: annotator.pseudonym for annotator in snapshot.annotators}
    names = {annotator.name: annotator.pseudonym for annotator in snapshot.annotators}
    by_item: dict[int, list[Judgment]] = {}
    for judgment in snapshot.judgments:
        by_item.setdefault(judgment.item_id, []).append(judgment)
    items = [_without_names(item, names) for item in snapshot.items]
    return [_to_row(item, by_item.get(item.id, []), pseudonyms) for item in items]


def _without_names(item: Item, names: Mapping[str, str]) -> Item:
    """Return an item with pseudonyms in its column `author`, which tells the store who wrote a completion."""
    author = item.extra.get(AUTHOR)
    if isinstance(author, str):
        author = names.get(author, author)
    elif isinstance(author, list):
        author = [names.get(name, name) if isinstance(name, str) else name for name in author]
    return replace(item, extra={**item.extra, AUTHOR: author}) if author else item


def _to_row(item: Item, judgments: Iterable[Judgment], pseudonyms: Mapping[int, str]) -> ParsedRow:
    index = {completion.id: number for number, completion in enumerate(item.completions)}
    new = NewItem(
        item.prompt,
        tuple(NewCompletion(completion.text, completion.source) for completion in item.completions),
        kind=item.kind,
        language=item.language,
        field=item.field,
        answer=_map_tiers(item.answer, index),
        explanation=item.explanation,
        is_random=item.is_random,
        extra=item.extra,
    )
    return ParsedRow(new, tuple(_to_judgment(new, judgment, index, pseudonyms) for judgment in judgments))


def _to_judgment(
    item: NewItem, judgment: Judgment, index: Mapping[int, int], pseudonyms: Mapping[int, str]
) -> NewJudgment:
    answer = judgment.answer
    by_index = {0: -1, **index}  # the id 0 flags the whole item
    annotator = pseudonyms[judgment.annotator_id]
    new = NewJudgment(
        item,
        annotator,
        judgment.task,
        replace(
            answer,
            tiers=_map_tiers(answer.tiers, index),
            criteria={index[number]: ratings for number, ratings in answer.criteria.items()},
            flags={by_index[number]: flags for number, flags in answer.flags.items()},
        ),
        order=tuple(index[number] for number in judgment.order),
        source=judgment.source,
        principle=judgment.principle,
        guideline=judgment.guideline,
        created=judgment.created,
    )
    return replace(new, key=_key(item, judgment, annotator))


def _key(item: NewItem, judgment: Judgment, annotator: str) -> str:
    """Return a key that is the same in each dump of a judgment, and another one for each other judgment."""
    values: list[Any] = [item.prompt, [c.text for c in item.completions], annotator, judgment.created, judgment.id]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _map_tiers(tiers: Tiers, index: Mapping[int, int]) -> Tiers:
    return tuple(tuple(sorted(index[number] for number in tier)) for tier in tiers)
