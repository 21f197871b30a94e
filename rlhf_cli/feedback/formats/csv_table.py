"""Plain rows as a table for spreadsheets: a line per judgment, whose cells can never be read as formulas."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import parse_messages
from rlhf_cli.data.issues import RowError
from rlhf_cli.data.published.format import one_name, read_object
from rlhf_cli.feedback.formats import rows
from rlhf_cli.feedback.formats.format import ITEM_COLUMNS, FeedbackFormat, ParsedRow

FORMULA_STARTS = (
    "=+-@\t\r\n＝＋－＠"  # what spreadsheets take for the beginning of a formula, alone or after a separator
)
ESCAPE = "'"  # before a cell that starts like a formula: spreadsheets show it as text
UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # CSV files are UTF-8, and spreadsheets end a cell at NUL
REPLACEMENT = "\ufffd"
JSON_COLUMNS = ("answer", "ranking", "order", "criteria", "flags", "extra")
JUDGMENT_COLUMNS = (
    *("annotator", "task", "ranking", "strength", "all_bad", "criteria", "flags", "rationale", "skip_reason"),
    *("seconds", "source", "principle", "order", "guideline", "created", "key"),
)
COUNT = "completion_count"  # tells an empty completion from none
_COMPLETION = re.compile(r"completion_(\d{1,4})")


def escape_cell(text: str) -> str:
    """Return a cell that no spreadsheet reads as a formula; `unescape_cell` returns the original."""
    return ESCAPE + text if text.startswith((*FORMULA_STARTS, *(ESCAPE + c for c in FORMULA_STARTS + ESCAPE))) else text


def unescape_cell(cell: str) -> str:
    """Return the text of a cell that `escape_cell` wrote."""
    return cell[1:] if cell[:1] == ESCAPE and cell[1:2] and cell[1] in FORMULA_STARTS + ESCAPE else cell


def _read(fields: Fields) -> list[ParsedRow]:
    return rows.read_rows(_nest(fields))


def _nest(fields: Fields) -> Fields:
    """Return a line as a plain row: its completions as a list, and its judgment as an object."""
    cells = {name: unescape_cell(cell) if isinstance(cell, str) else cell for name, cell in fields.items()}
    judgment_columns = JUDGMENT_COLUMNS if "annotator" in cells else ()
    values = {
        name: _parse(name, cell) if name in JSON_COLUMNS and name in (*judgment_columns, "answer", "extra") else cell
        for name, cell in cells.items()
    }
    columns = {int(match[1]): name for name in cells if (match := _COMPLETION.fullmatch(name))}
    count = rows.read_integer(cells, COUNT, range(2, 10_000))
    if count is None:
        count = 1 + max((number for number, name in columns.items() if cells[name]), default=-1)
    completions = [
        {"text": _text(cells.get(columns.get(number, ""), "")), "source": cells.get(f"source_{number}", "")}
        for number in range(count)
    ]
    judgment = {name: values[name] for name in judgment_columns if values.get(name) not in (None, "")}
    read = {*judgment_columns, COUNT, "extra", *columns.values(), *(f"source_{number}" for number in columns)}
    return {
        **{name: value for name, value in values.items() if name not in read},
        **read_object(values.get("extra") or {}, "extra"),
        "prompt": _text(cells["prompt"]),
        "completions": completions,
        **({"judgments": [judgment]} if judgment.get("annotator") else {}),
    }


def _parse(name: str, cell: Any) -> Any:
    """Return the value of a cell that holds JSON, or None if it is empty."""
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell) if cell else None
    except (ValueError, RecursionError):
        if name == "answer":  # of the prompt, for rewards
            return cell
        message = f"{name}: found {cell[:50]!r}, expected JSON."
        raise RowError("data.invalid-json", message, "Correct it, or leave the cell empty.") from None


def _text(cell: Any) -> Any:
    """Return a text, or the messages that a cell holds as JSON."""
    return parse_messages(cell) or cell if isinstance(cell, str) else cell


def _write(row: ParsedRow, lost: Counter[str]) -> list[Fields]:
    """Return a line for each judgment of an item, or one line if there is none."""
    item = row.item
    plain = rows.write_item(item)
    line = {name: plain[name] for name in ITEM_COLUMNS if name in plain}
    line[COUNT] = len(item.completions)
    for number, completion in enumerate(item.completions):
        line[f"completion_{number}"] = completion.text
        line[f"source_{number}"] = completion.source
    if item.extra:
        line["extra"] = dict(item.extra)
    lines = [{**line, **rows.write_judgment(judgment)} for judgment in row.judgments] or [line]
    return [{name: _cell(value, lost) for name, value in given.items()} for given in lines]


def _cell(value: Any, lost: Counter[str]) -> str:
    """Return the text of a cell."""
    if isinstance(value, bool):
        value = str(value).lower()
    text = value if isinstance(value, str) else json.dumps(value)
    if UNWRITABLE.search(text):
        lost["cell with NUL or a lone surrogate, written as U+FFFD"] += 1
        text = UNWRITABLE.sub(REPLACEMENT, text)
    return escape_cell(text)


FORMAT = FeedbackFormat(
    name="csv",
    origin="spreadsheets",
    reading="A line per judgment, or per item without one. `ranking` holds indices from 0, such as `[2, [0, 1]]`.",
    columns=one_name("prompt", "completion_0", "completion_1"),
    convert=_read,
    write=_write,
    keeps_other_columns=False,
)
