"""Known formats to typed rows: which form the columns have, what each row means in it, and which rows are dropped."""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_cli.data.columns import FORMS, Kind, add_wrong_columns, renamed, renamed_columns
from rlhf_cli.data.conversations import (
    FILL_IN,
    TRANSCRIPT,
    RowIssue,
    UnusableRow,
    check_answer,
    check_prompt,
    common_text,
    common_turns,
    read_messages,
    read_transcript,
    split_last_answer,
)
from rlhf_cli.data.readers import MAX_SHOWN_ISSUES, Batch, Fields, IssueCollector, type_name
from rlhf_cli.data.rows import Message, PreferenceRow, PromptRow, SftRow, Text, TextRow

RESERVED = ("prompts", "completions")  # a reward function's own arguments
TEXT, CONVERSATION = "text", "a conversation"


class Converter:
    """Typed rows of raw ones, batch by batch; what is wrong goes into `issues`, what is dropped into `counts`.

    Which form the rows have, and which further columns, follows from `found`, the columns that are known beforehand;
    `columns` holds those that the rows had, too. Where the data is somebody else's (`editable=False`: it cannot be
    fixed by hand), a row that is empty or out of order is dropped and counted in place of a issue. `name` is the
    source's, for issues that no single row has.
    """

    def __init__(
        self,
        kind: Kind,
        names: Mapping[str, str],
        found: Sequence[str],
        *,
        name: str,
        issues: IssueCollector,
        editable: bool,
    ) -> None:
        self.columns = dict.fromkeys(found)
        self.counts: Counter[str] = Counter()
        self.form = ""  # of the first row: text, or a conversation
        self._first = ""  # where that row stands
        self._names, self._faults, self._editable = names, issues, editable
        self._one_row: Callable[[Fields], Any] | None = None
        self._texts: tuple[str, ...] = ()  # the columns of rows that are text, where nothing else can be said of them
        if found and (planned := _planned(kind, names, found, name, issues)):
            form, columns = planned
            self._one_row = _converter(kind, form, columns)
            self._texts = _plain_columns(kind, form, columns) if not names else ()
        self._with_margin = ""  # the first place of one
        self._without: list[str] = []
        self._without_count = 0

    def rows(self, batch: Batch) -> list[Any]:
        """The rows that are whole, in their order."""
        self._note(batch)
        if self._one_row is None:
            return []
        rows = []
        for number, fields in zip(batch.numbers, batch.rows, strict=True):
            try:
                row = self._one_row(renamed(fields, self._names) if self._names else fields)
            except UnusableRow as reason:
                self.counts[f"dropped: {reason}"] += 1
            except RowIssue as issue:
                if issue.drop_as and not self._editable:
                    self.counts[f"dropped: {issue.drop_as}"] += 1
                else:
                    self._faults.add(str(issue), f"{batch.before}{number}", issue.hint)
            else:
                rows.append(row)
                self._check_form(row, batch, number)
                if type(row) is PreferenceRow:
                    self._note_margin(row, batch, number)
        return rows

    def prompts(self, batch: Batch) -> Sequence[str] | None:
        """The prompts of a batch whose every row is sound text; None where `rows` has to look at each.

        It does what `rows` does, for what most data are, at a quarter of the time.
        """
        if not self._texts or not batch.rows or self.form == CONVERSATION:
            return None
        try:
            columns = [[fields[name] for fields in batch.rows] for name in self._texts]
        except KeyError:
            return None
        for texts in columns:
            if set(map(type, texts)) != {str} or not all(map(str.strip, texts)):
                return None
        if len(columns) == 3 and any(map(operator.eq, columns[1], columns[2])):
            return None
        self._note(batch)
        if not self.form:
            self.form, self._first = TEXT, f"{batch.before}{batch.numbers[0]}"
        return columns[0]

    def _note(self, batch: Batch) -> None:
        self.columns.update(dict.fromkeys(itertools.chain.from_iterable(batch.rows)))
        self.counts["read"] += len(batch.rows)

    def _check_form(self, row: Any, batch: Batch, number: int) -> None:
        form = _form(row[0])
        if not self.form:
            self.form, self._first = form, f"{batch.before}{number}"
        elif form != self.form:
            hint = "Text and conversations are not mixed in one data set: bring all rows to one form."
            message = f"the row is {form}, and {self._first} is {self.form}."
            self._faults.add(message, f"{batch.before}{number}", hint)

    def _note_margin(self, row: PreferenceRow, batch: Batch, number: int) -> None:
        if row.margin is None:
            self._without_count += 1
            if len(self._without) < MAX_SHOWN_ISSUES:
                self._without.append(f"{batch.before}{number}")
        elif not self._with_margin:
            self._with_margin = f"{batch.before}{number}"

    def close(self) -> None:
        """Tell what is known when all rows are."""
        # Trainers look for `margin` on the first row alone: it is on all rows or none.
        if self._with_margin:
            message = f"`margin` is missing here, and {self._with_margin} has one."
            for location in self._without:
                self._faults.add(message, location, "Give it on all rows or none.")
            self._faults.count += self._without_count - len(self._without)


def _planned(
    kind: Kind, names: Mapping[str, str], found: Sequence[str], name: str, issues: IssueCollector
) -> tuple[tuple[str, ...], list[str]] | None:
    """The form of the rows and their columns under our names; None, and the issues told, where none fits."""
    columns = renamed_columns(kind, names, found, name, issues) if names else list(found)
    if columns is None:
        return None
    form = next((form for form in FORMS[kind] if set(form) <= set(columns)), None)
    if form is None:
        add_wrong_columns(kind, columns, name, issues)
        return None
    if kind == "prompts" and (reserved := [column for column in RESERVED if column in columns]):
        hint = f"Give it another name, e.g. `columns: {{{reserved[0]}_column: {reserved[0]}}}`."
        issues.add(f"a column must not be called {reserved[0]}: reward functions are handed that name.", name, hint)
        return None
    return form, columns


def _plain_columns(kind: Kind, form: tuple[str, ...], columns: Sequence[str]) -> tuple[str, ...]:
    """The prompt's column, and the others that must be text in a row of text; none where a row is more than these."""
    if kind == "preferences":
        return ("prompt", *form) if "prompt" in columns and "margin" not in columns else ()
    if kind == "prompts":
        return form if form == ("prompt",) else ()
    return form if form != ("messages",) else ()


def _converter(kind: Kind, form: tuple[str, ...], found: Sequence[str]) -> Callable[[Fields], Any]:
    """What makes a typed row of a raw one."""
    if kind == "pretrain":
        return lambda fields: TextRow(_string(fields, "text"))
    if kind == "sft":
        return {"prompt": _sft_pair, "messages": _sft_messages, "text": _sft_text}[form[0]]
    if kind == "preferences":
        extra = [column for column in found if column not in ("prompt", "chosen", "rejected", "margin")]
        return _prompted(lambda fields: _preference(fields, extra), found)
    used = (*form, "prompt")
    extra = [column for column in found if column not in used]
    prompt_of = {"chosen": _prompt_of_preference, "messages": _prompt_of_messages, "prompt": _prompt}[form[0]]
    return _prompted(lambda fields: PromptRow(prompt_of(fields), _extra(fields, extra)), found)


def _prompted(one_row: Callable[[Fields], Any], found: Sequence[str]) -> Callable[[Fields], Any]:
    """Where other rows have a prompt, none is guessed for one that has not."""
    if "prompt" not in found:
        return one_row

    def make(fields: Fields) -> Any:
        _value(fields, "prompt")
        return one_row(fields)

    return make


def _extra(fields: Fields, columns: Sequence[str]) -> Fields:
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
    prompt, chosen, rejected = _versioned_ref(fields)
    if chosen == rejected:
        raise UnusableRow("chosen equals rejected")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) > 1 and not isinstance(answer, str):  # not in _explicit: prompts are taken from such rows too
            raise RowIssue(
                f"`{name}` holds user turns behind the prompt, which would be judged as if they were the answer.",
                "Compare single answers: end both conversations with the first assistant turn that differs.",
                drop_as="user turns in an answer",
            )
    return PreferenceRow(prompt, chosen, rejected, _margin(fields), _extra(fields, extra))


def _prompt_of_preference(fields: Fields) -> Text:
    given = fields.get("prompt")
    if isinstance(given, list) or (isinstance(given, str) and not isinstance(fields.get("chosen"), list)):
        return _prompt(fields)  # explicit: what the answers are does not matter
    prompt = _versioned_ref(fields)[0]
    if not prompt:
        raise RowIssue(
            "`chosen` and `rejected` have no common beginning that could be the prompt.",
            "Write the prompt in a column `prompt`.",
            drop_as="no prompt",
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


def _versioned_ref(fields: Fields) -> tuple[Text, Text, Text]:
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
            raise RowIssue(
                "`prompt` is text, and `chosen` and `rejected` are conversations that do not begin with it.",
                "Text and conversations are never guessed from one another: write the prompt as messages.",
            )
        if not shared or chosen[shared - 1]["role"] != "user":
            raise RowIssue(
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
        raise RowIssue(f"`margin` must be a finite number, found {value!r}.", "Write a number, or null on all rows.")
    return number


def _text(fields: Fields, name: str) -> Text:
    value = fields.get(name)
    if type(value) is str and value and not value.isspace():
        return value
    return read_messages(value, name) if isinstance(value, list) else _string(fields, name)


def _value(fields: Fields, name: str) -> Any:
    if name not in fields:
        raise RowIssue(f"the field `{name}` is missing.", FILL_IN)
    if fields[name] is None:
        raise RowIssue(f"`{name}` is null.", FILL_IN, drop_as=f"empty {name}")
    return fields[name]


def _string(fields: Fields, name: str) -> str:
    value = _value(fields, name)
    if not isinstance(value, str):
        raise RowIssue(f"`{name}` must be text, found {type_name(value)}.", "Write it in quotes, or take the row out.")
    if not value.strip():
        raise RowIssue(f"`{name}` is empty.", FILL_IN, drop_as=f"empty {name}")
    return value


def _form(text: Text) -> str:
    return TEXT if isinstance(text, str) else CONVERSATION


def _mixed(name: str, value: Text, other: Text) -> RowIssue:
    return RowIssue(f"`{name}` is {_form(value)} beside {_form(other)}.", "Write both in one form.")
