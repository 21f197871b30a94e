"""Find the prompts of a batch of valid conversations by column, without parsing each row.

Whether a row of well-formed messages is valid depends on their roles only, so each sequence of roles is parsed once. A
batch with anything else is left to the parser, which finds the issues.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import ROLES
from rlhf_cli.data.dataset_kinds import MESSAGES, PAIR, Format
from rlhf_cli.data.formats import CONVERSATION_STARTS, ParseRow
from rlhf_cli.data.issues import DroppedRowError, RowError
from rlhf_cli.data.splits import normalize_whitespace

ROLE_LETTERS = {role: role[0] for role in ROLES}
FORMATS: tuple[Format, ...] = (MESSAGES, ("prompt",), ("prompt", "completion"), PAIR)  # that can hold conversations

_ROLE_AND_CONTENT = operator.itemgetter("role", "content")
_ROLES = {letter: role for role, letter in ROLE_LETTERS.items()}


class Conversations(NamedTuple):
    """One column of a batch, which holds well-formed conversations.

    Attributes:
        contents: The contents of all turns of all rows.
        starts: Where each row's contents start.
        roles: The roles of each row's turns, a letter for each turn.
    """

    contents: list[str]
    starts: list[int]
    roles: list[str]


class ConversationBatches:
    """Finds the prompts of the batches of one dataset.

    Args:
        row_format: The dataset's format, one of `FORMATS`.
        parse: Parses a row.
        has_prompt: Whether the dataset has a column `prompt`.
    """

    def __init__(self, row_format: Format, parse: ParseRow, *, has_prompt: bool) -> None:
        self._names = ("prompt", *PAIR) if row_format == PAIR and has_prompt else row_format
        self._parse = parse
        self._user_turns: dict[bool, dict[tuple[str, ...], tuple[int, ...]]] = {False: {}, True: {}}

    def prompt_keys(self, rows: Sequence[Fields]) -> list[str] | None:
        """Return the `prompt_key` of each row, or None if a row may be anything but a valid conversation."""
        try:
            values = {name: [fields[name] for fields in rows] for name in self._names}
        except KeyError:
            return None
        texts = None
        if len(values) > 2 and set(map(type, values["prompt"])) == {str}:
            texts = values.pop("prompt")
            if any(text.lstrip().startswith(CONVERSATION_STARTS) for text in texts):
                return None
        columns = {name: read_conversations(column) for name, column in values.items()}
        if None in columns.values():
            return None
        found: dict[str, Conversations] = columns  # type: ignore[assignment]  # without None
        if "prompt" not in found and PAIR[0] in found:
            if not _have_common_turns(values["chosen"], values["rejected"], texts):
                return None
        elif PAIR[0] in found and not _are_different_answers(found["chosen"], found["rejected"]):
            return None
        return self._join_user_turns(found, has_text=texts is not None)

    def _join_user_turns(self, columns: dict[str, Conversations], *, has_text: bool) -> list[str] | None:
        """Return the contents of the user turns of each row's prompt, which is in the first column."""
        contents, starts, _ = next(iter(columns.values()))
        shapes = list(zip(*(column.roles for column in columns.values()), strict=True))
        user_turns = self._user_turns[has_text]
        for shape in set(shapes).difference(user_turns):
            user_turns[shape] = self._find_user_turns(list(columns), shape, has_text=has_text)
        turns = [user_turns[shape] for shape in shapes]
        if () in turns:
            return None
        positions = [start + turn for start, users in zip(starts, turns, strict=True) for turn in users]
        texts = [normalize_whitespace(contents[position]) for position in positions]
        if len(texts) == len(shapes):
            return texts  # one of each row: a prompt has at least one
        remaining = iter(texts)
        return ["\0".join(itertools.islice(remaining, len(users))) for users in turns]

    def _find_user_turns(self, names: list[str], roles: tuple[str, ...], *, has_text: bool) -> tuple[int, ...]:
        """Return which turns of the first column are the user turns of the prompt; none if the row is invalid.

        A row with these roles is parsed whose contents are the numbers of the turns. Turns of `chosen` and `rejected`
        that have to be common have equal numbers.
        """
        row: Fields = {"prompt": "0"} if has_text else {}
        for column, (name, turns) in enumerate(zip(names, roles, strict=True)):
            is_common = names == list(PAIR)
            row[name] = [
                {"role": _ROLES[role], "content": f"{turn}" if is_common and turn < len(turns) - 1 else f"{turn}{name}"}
                for turn, role in enumerate(turns)
            ]
            if column == 0:
                numbers = {message["content"]: turn for turn, message in enumerate(row[name])}
        try:
            prompt = self._parse(row)[0]
        except (RowError, DroppedRowError):
            return ()
        if isinstance(prompt, str):
            return ()
        return tuple(numbers[message["content"]] for message in prompt if message["role"] == "user")


def read_conversations(values: list[Any]) -> Conversations | None:
    """Return a column's conversations, or None unless all turns have just a role and a content that is not empty."""
    if set(map(type, values)) != {list} or not all(values):
        return None
    turns = list(itertools.chain.from_iterable(values))
    if set(map(type, turns)) != {dict} or set(map(len, turns)) != {2}:
        return None
    try:
        pairs = list(map(_ROLE_AND_CONTENT, turns))
        roles = "".join([ROLE_LETTERS[role] for role, _ in pairs])
    except (KeyError, TypeError):  # another key, or another role
        return None
    contents = [content for _, content in pairs]
    if set(map(type, contents)) != {str} or not all(map(str.strip, contents)):
        return None
    if len(turns) == len(values):
        return Conversations(contents, list(range(len(values))), list(roles))
    ends = list(itertools.accumulate(map(len, values)))
    starts = [0, *ends[:-1]]
    return Conversations(contents, starts, [roles[start:end] for start, end in zip(starts, ends, strict=True)])


def _are_different_answers(chosen: Conversations, rejected: Conversations) -> bool:
    """Return whether both completions of each row are one turn, and not the same."""
    is_single = len(chosen.contents) == len(chosen.roles) and len(rejected.contents) == len(rejected.roles)
    return is_single and not any(map(operator.eq, chosen.contents, rejected.contents))


def _have_common_turns(chosen: list[Any], rejected: list[Any], prompts: list[str] | None) -> bool:
    """Return whether each row's conversations differ in the last turn only, and hold the prompt, if any, before it."""
    for index, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        if one[-1] == other[-1] or one[:-1] != other[:-1]:
            return False
        if prompts is not None and all(turn["content"] != prompts[index] for turn in one[:-1]):
            return False
    return True
