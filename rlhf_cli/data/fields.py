"""Read typed values of a raw row's fields. Each function raises RowError if its value cannot be used."""

from __future__ import annotations

import math
from typing import Any

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import parse_messages, read_messages
from rlhf_cli.data.issues import FILL_IN_HINT, RowError, empty_field_error, type_name
from rlhf_cli.data.rows import Message, Text

TEXT = "text"
CONVERSATION = "a conversation"


def get_value(fields: Fields, name: str) -> Any:
    """Return the value of a field that must be there and not null."""
    if name not in fields:
        raise RowError("data.missing-field", f"{name}: missing field.", FILL_IN_HINT)
    if fields[name] is None:
        raise empty_field_error(name, f"{name}: found null, expected a value.")
    return fields[name]


def get_string(fields: Fields, name: str) -> str:
    """Return a field's text, which must hold more than white space."""
    value = get_value(fields, name)
    if not isinstance(value, str):
        message = f"{name}: found {type_name(value)}, expected text."
        raise RowError("data.wrong-type", message, "Write it in quotes, or remove the row.")
    if not value.strip():
        raise empty_field_error(name, f"{name}: empty text.")
    return value


def get_text(fields: Fields, name: str, *, may_be_empty: bool = False) -> Text:
    """Return a field's text or its conversation: a list of messages, one message, or these written as text.

    Args:
        fields: The row.
        name: The field.
        may_be_empty: Whether the text, or the last message, may be empty.
    """
    value = fields.get(name)
    if type(value) is str and value and not value.isspace():  # almost all values: worth a test of its own
        if value.lstrip().startswith(("[", "{")) and (messages := parse_messages(value)):
            return read_messages(messages, name, may_end_empty=may_be_empty)
        return value
    if isinstance(value, list | dict):
        return read_messages(value if isinstance(value, list) else [value], name, may_end_empty=may_be_empty)
    return value if may_be_empty and isinstance(value, str) else get_string(fields, name)


def get_messages(fields: Fields, name: str) -> list[Message]:
    """Return a field's messages, which may also be written as text, as in CSV files."""
    value = get_value(fields, name)
    if isinstance(value, str):
        value = parse_messages(value) or value
    return read_messages(value, name)


def get_margin(fields: Fields) -> float | None:
    """Return the margin, by how much chosen is better than rejected, or None if the row has none."""
    value = fields.get("margin")
    if value is None or value == "":
        return None
    margin = _to_number(value)
    if not math.isfinite(margin):
        message = f"margin: found {value!r}, expected a finite number."
        raise RowError("data.invalid-margin", message, "Write a number, or null on all rows.")
    return margin


def _to_number(value: Any) -> float:
    """Return `value` as a number, also from text as in CSV files, or NaN if it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def format_of(text: Text) -> str:
    """Return `TEXT` or `CONVERSATION`."""
    return TEXT if isinstance(text, str) else CONVERSATION


def mixed_formats_error(name: str, value: Text, other: Text) -> RowError:
    """Return the error of field `name` whose format differs from that of another field."""
    message = f"{name}: found {format_of(value)}, expected {format_of(other)} as in the row's other fields."
    return RowError("data.mixed-formats", message, "Use the same format for all fields.")
