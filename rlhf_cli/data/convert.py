"""Known formats to typed rows: which form the columns have, what each row means in it, and which rows are dropped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from rlhf_cli.data.columns import FORMS, Kind, add_wrong_columns, rename
from rlhf_cli.data.conversations import (
    TRANSCRIPT,
    RowFault,
    UnusableRow,
    check_answer,
    check_prompt,
    common_text,
    common_turns,
    read_messages,
    read_transcript,
    split_last_answer,
)
from rlhf_cli.data.reading import Faults, Raw, type_name
from rlhf_cli.data.rows import Message, PreferenceRow, PromptRow, SftRow, Text, TextRow

Fields = Mapping[str, Any]
Converted = TypeVar("Converted", bound=TextRow | SftRow | PreferenceRow | PromptRow)

RESERVED = ("prompts", "completions")  # a reward function's own arguments


class Rows(NamedTuple, Generic[Converted]):
    """The rows of one source, and how many were dropped, by reason."""

    rows: list[Converted]
    counts: Counter[str]


def convert(
    raws: Sequence[Raw], kind: Kind, columns: Mapping[str, str], *, name: str, faults: Faults, editable: bool
) -> Rows[Any]:
    """Rows of `kind` from raw ones. Faults go into `faults`.

    Where the data is somebody else's (`editable=False`: it cannot be mended by hand), a row that is empty or out of
    order is dropped and counted in place of a fault. `name` is the source's, for faults that no single row has.
    """
    found = list(dict.fromkeys(column for raw in raws for column in raw.fields))
    renamed = rename(raws, kind, columns, found, name, faults)
    if renamed is None:
        return Rows([], Counter())
    raws, found = renamed
    form = next((form for form in FORMS[kind] if set(form) <= set(found)), None)
    if form is None:
        add_wrong_columns(kind, found, name, faults)
        return Rows([], Counter())
    if kind == "prompts" and (reserved := [column for column in RESERVED if column in found]):
        mend = f"Give it another name, e.g. `columns: {{{reserved[0]}_column: {reserved[0]}}}`."
        faults.add(f"a column must not be called {reserved[0]}: reward functions are handed that name.", name, mend)
        return Rows([], Counter())
    one_row = _converter(kind, form, found)
    rows, places, counts = _each(raws, one_row, faults, editable)
    _check_one_form(rows, places, faults)
    _check_margins(rows, places, faults)
    return Rows(rows, counts)


def _each(
    raws: Sequence[Raw], one_row: Callable[[Fields], Any], faults: Faults, editable: bool
) -> tuple[list[Any], list[str], Counter[str]]:
    rows, places, counts = [], [], Counter[str]()
    for raw in raws:
        try:
            row = one_row(raw.fields)
        except UnusableRow as reason:
            counts[f"dropped: {reason}"] += 1
        except RowFault as fault:
            if fault.drop_as and not editable:
                counts[f"dropped: {fault.drop_as}"] += 1
            else:
                faults.add(str(fault), raw.where, fault.mend)
        else:
            rows.append(row)
            places.append(raw.where)
    return rows, places, counts


def _converter(kind: Kind, form: tuple[str, ...], found: Sequence[str]) -> Callable[[Fields], Any]:
    """What makes a typed row of a raw one."""
    if kind == "pretrain":
        return lambda fields: TextRow(_string(fields, "text"))
    if kind == "sft":
        return {"prompt": _sft_pair, "messages": _sft_messages, "text": _sft_text}[form[0]]
    if kind == "preferences":
        extra = [column for column in found if column not in ("prompt", "chosen", "rejected", "margin")]
        return lambda fields: _preference(fields, extra)
    used = (*form, "prompt")
    extra = [column for column in found if column not in used]
    prompt_of = {"chosen": _prompt_of_preference, "messages": _prompt_of_messages, "prompt": _prompt}[form[0]]
    return lambda fields: PromptRow(prompt_of(fields), _extra(fields, extra))


def _extra(fields: Fields, columns: Sequence[str]) -> dict[str, Any]:
    """The further columns; null where this row lacks one, so that all rows have the same."""
    return {column: fields.get(column) for column in columns}


def _sft_pair(fields: Fields) -> SftRow:
    """The row's prompt and completion. Of a completion of several turns, all but the last belong to the prompt.

    The loss is on the last answer alone, as it is for `messages`: no turn of the user's is learned.
    """
    prompt, completion = _text(fields, "prompt"), _text(fields, "completion")
    if isinstance(prompt, str) != isinstance(completion, str):
        raise _mixed("completion", completion, prompt)
    if not isinstance(prompt, str) and not isinstance(completion, str):
        check_prompt(prompt, "prompt")
        check_answer(prompt, completion, "completion")
        prompt, completion = [*prompt, *completion[:-1]], completion[-1:]
    return SftRow(prompt, completion)


def _sft_messages(fields: Fields) -> SftRow:
    prompt, completion = split_last_answer(read_messages(_value(fields, "messages"), "messages"), "messages")
    return SftRow(prompt, completion)


def _sft_text(fields: Fields) -> SftRow:
    return SftRow("", _string(fields, "text"))


def _preference(fields: Fields, extra: Sequence[str]) -> PreferenceRow:
    prompt, chosen, rejected = _explicit(fields)
    if chosen == rejected:
        raise UnusableRow("chosen equals rejected")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) > 1 and not isinstance(answer, str):  # not in _explicit: prompts are taken from such rows too
            raise RowFault(
                f"`{name}` holds user turns behind the prompt, which would be judged as if they were the answer.",
                "Compare single answers: end both conversations with the first assistant turn that differs.",
                drop_as="user turns in an answer",
            )
    return PreferenceRow(prompt, chosen, rejected, _margin(fields), _extra(fields, extra))


def _prompt_of_preference(fields: Fields) -> Text:
    given = fields.get("prompt")
    if isinstance(given, list) or (isinstance(given, str) and not isinstance(fields.get("chosen"), list)):
        return _prompt(fields)  # explicit: what the answers are does not matter
    prompt = _explicit(fields)[0]
    if not prompt:
        raise RowFault(
            "`chosen` and `rejected` have no common beginning that could be the prompt.", drop_as="no prompt"
        )
    return prompt


def _prompt_of_messages(fields: Fields) -> list[Message]:
    messages = read_messages(_value(fields, "messages"), "messages")
    prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    check_prompt(prompt, "messages")
    return prompt


def _prompt(fields: Fields) -> Text:
    prompt = _text(fields, "prompt")
    if not isinstance(prompt, str):
        check_prompt(prompt, "prompt")
    return prompt


def _explicit(fields: Fields) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected, each on its own, in whichever form the row has them.

    Turns that both conversations begin with belong to the prompt, also where the row has a prompt beside them.
    """
    chosen, rejected = _text(fields, "chosen"), _text(fields, "rejected")
    prompt = _text(fields, "prompt") if "prompt" in fields else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        if isinstance(prompt, str):
            return prompt, chosen, rejected
        if prompt is not None:
            raise _mixed("chosen", chosen, prompt)
        if chosen.startswith(TRANSCRIPT) and rejected.startswith(TRANSCRIPT):
            return _explicit_transcript(chosen, rejected)
        end = common_text(chosen, rejected)
        return chosen[:end], chosen[end:], rejected[end:]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise _mixed("rejected", rejected, chosen)
    shared = common_turns(chosen, rejected)
    if isinstance(prompt, list):
        if shared and chosen[0]["role"] == "assistant" and chosen[shared - 1]["role"] == "user":
            prompt, chosen, rejected = [*prompt, *chosen[:shared]], chosen[shared:], rejected[shared:]
    else:
        if isinstance(prompt, str) and not any(turn["content"] == prompt for turn in chosen[:shared]):
            raise RowFault(
                "`prompt` is text, and `chosen` and `rejected` are conversations that do not begin with it.",
                "Text and conversations are never guessed from one another: write the prompt as messages.",
            )
        if not shared or chosen[shared - 1]["role"] != "user":
            raise RowFault(
                f"`chosen` and `rejected` part at turn {shared + 1}; what they share must end with a user turn.",
                drop_as="no common prompt",
            )
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    check_prompt(prompt, "prompt")
    check_answer(prompt, chosen, "chosen")
    check_answer(prompt, rejected, "rejected")
    return prompt, chosen, rejected


def _explicit_transcript(chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    prompt, answer = _split_transcript(chosen)
    other_prompt, other_answer = _split_transcript(rejected)
    if prompt != other_prompt:
        raise UnusableRow("transcripts that answer different prompts")
    return prompt, answer, other_answer


def _split_transcript(text: str) -> tuple[list[Message], list[Message]]:
    turns = read_transcript(text)
    if turns[0]["role"] != "user" or len(turns) < 2:
        raise UnusableRow("transcript without a question")
    return turns[:-1], turns[-1:]


def _margin(fields: Fields) -> float | None:
    """How much better chosen is. CSV holds numbers as text."""
    value = fields.get("margin")
    if value is None or value == "":
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RowFault(f"`margin` must be a finite number, found {value!r}.")
    return number


def _value(fields: Fields, name: str) -> Any:
    if name not in fields:
        raise RowFault(f"the field `{name}` is missing.")
    if fields[name] is None:
        raise RowFault(f"`{name}` is null.", drop_as=f"empty {name}")
    return fields[name]


def _text(fields: Fields, name: str) -> Text:
    value = _value(fields, name)
    return read_messages(value, name) if isinstance(value, list) else _string(fields, name)


def _string(fields: Fields, name: str) -> str:
    value = _value(fields, name)
    if not isinstance(value, str):
        raise RowFault(f"`{name}` must be text, found {type_name(value)}.")
    if not value.strip():
        raise RowFault(f"`{name}` is empty.", drop_as=f"empty {name}")
    return value


def _form(text: Text) -> str:
    return "text" if isinstance(text, str) else "a conversation"


def _mixed(name: str, value: Text, other: Text) -> RowFault:
    return RowFault(f"`{name}` is {_form(value)} beside {_form(other)}.", "Write both in one form.")


def form_of(row: TextRow | SftRow | PreferenceRow | PromptRow) -> str:
    """Whether a row is text or a conversation, in words."""
    return "text" if isinstance(row, TextRow) else _form(row.prompt)


def _check_one_form(rows: Sequence[Any], places: Sequence[str], faults: Faults) -> None:
    for row, place in zip(rows, places, strict=True):
        if form_of(row) != form_of(rows[0]):
            mend = "Text and conversations are not mixed in one data set: bring all rows to one form."
            faults.add(f"the row is {form_of(row)}, and {places[0]} is {form_of(rows[0])}.", place, mend)


def _check_margins(rows: Sequence[Any], places: Sequence[str], faults: Faults) -> None:
    """Trainers look for `margin` on the first row alone: it is on all rows or none."""
    with_margin = [place for row, place in zip(rows, places, strict=True) if getattr(row, "margin", None) is not None]
    if not with_margin:
        return
    for row, place in zip(rows, places, strict=True):
        if row.margin is None:
            faults.add(
                f"`margin` is missing here, and {with_margin[0]} has one.", place, "Give it on all rows or none."
            )
