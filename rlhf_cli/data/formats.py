"""Parse a raw row of a known format into a typed row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import check_completion, check_prompt, parse_messages, split_last_turn
from rlhf_cli.data.dataset_kinds import KINDS, MESSAGES, PAIR, Format
from rlhf_cli.data.fields import get_margin, get_messages, get_string, get_text, get_value, mixed_formats_error
from rlhf_cli.data.issues import DroppedRowError, RowError
from rlhf_cli.data.preferences import split_preference
from rlhf_cli.data.rows import Message, PreferenceRow, PromptRow, SftRow, Text, TextRow, TypedRow
from rlhf_cli.data.transcripts import TRANSCRIPT_STARTS, is_transcript
from rlhf_cli.stages import DatasetKind

CONVERSATION_STARTS = ("[", "{", *TRANSCRIPT_STARTS)  # of text that may be a conversation, and has to be parsed
ParseRow = Callable[[Fields], TypedRow]  # raises RowError or DroppedRowError


def row_parser(kind: DatasetKind, row_format: Format, columns: Sequence[str]) -> ParseRow:
    """Return the function that parses rows of a dataset.

    Args:
        kind: The dataset kind.
        row_format: The format of its rows, one of the kind's.
        columns: All columns of the dataset, under our names.
    """
    if not KINDS[kind].keeps_other_columns:
        return _PARSERS[kind, row_format]
    extra = [column for column in columns if column not in (*row_format, *KINDS[kind].optional)]
    parse = _preference_parser(extra) if kind == "preferences" else _prompt_parser(row_format, extra)
    return _require_prompt(parse) if "prompt" in columns else parse


def plain_text_columns(kind: DatasetKind, row_format: Format, columns: Sequence[str]) -> Format:
    """Return the prompt's column and the others that must be text, or () if valid rows may hold anything else.

    Rows whose columns are all text need no parser to be counted.
    """
    if row_format == MESSAGES:
        return ()
    if row_format == PAIR:
        is_plain = kind == "preferences" and "prompt" in columns and "margin" not in columns
        return ("prompt", *PAIR) if is_plain else ()
    return row_format


def _parse_text(fields: Fields) -> TextRow:
    return TextRow(get_string(fields, "text"))


def _parse_demonstration(fields: Fields) -> SftRow:
    """Return the row's prompt and completion. All turns of the completion but the last move to the prompt.

    So the loss is on the last assistant turn only, as for `messages`, and no user turn is trained on.
    """
    prompt = get_text(fields, "prompt")
    completion = get_text(fields, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return SftRow(prompt, completion)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise mixed_formats_error("completion", completion, prompt)
    check_prompt(prompt, "prompt")
    check_completion(prompt, completion, "completion")
    return SftRow([*prompt, *completion[:-1]], completion[-1:])


def _parse_sft_messages(fields: Fields) -> SftRow:
    return SftRow(*split_last_turn(get_messages(fields, "messages"), "messages"))


def _parse_sft_text(fields: Fields) -> SftRow:
    """Return the row's text as a completion. Raise RowError if it is a conversation in disguise."""
    text = get_string(fields, "text")
    if text.lstrip().startswith(("[", "{")) and parse_messages(text):
        raise RowError(
            "data.conversation-as-text",
            "text: found messages written as text, whose brackets and keys would be trained on.",
            "Read them with `columns: {messages: text}` on the source.",
        )
    if is_transcript(text):
        raise RowError(
            "data.conversation-as-text",
            "text: found a transcript; its questions and marks of speakers would be trained on.",
            "Set `format: transcript` on the source.",
        )
    return SftRow("", text)


def _preference_parser(extra: Sequence[str]) -> ParseRow:
    def parse(fields: Fields) -> PreferenceRow:
        prompt, chosen, rejected = split_preference(fields)
        if chosen == rejected:
            raise DroppedRowError("chosen equals rejected")
        _check_single_turn(chosen, "chosen")
        _check_single_turn(rejected, "rejected")
        return PreferenceRow(prompt, chosen, rejected, get_margin(fields), _select(fields, extra))

    return parse


def _check_single_turn(completion: Text, name: str) -> None:
    """Raise RowError if a completion has user turns. Only its row's prompt can be used."""
    if len(completion) > 1 and not isinstance(completion, str):
        raise RowError(
            "data.multi-turn-completion",
            f"{name}: has user turns after the prompt, which would be scored as part of the completion.",
            "End both conversations with the first assistant turn that differs.",
            dropped_as="user turns in a completion",
        )


def _prompt_parser(row_format: Format, extra: Sequence[str]) -> ParseRow:
    parse_prompt = _PROMPT_PARSERS[row_format]
    return lambda fields: PromptRow(parse_prompt(fields), _select(fields, extra))


def _parse_prompt(fields: Fields) -> Text:
    prompt = get_text(fields, "prompt")
    if not isinstance(prompt, str):
        check_prompt(prompt, "prompt")
    return prompt


def _parse_prompt_of_messages(fields: Fields) -> list[Message]:
    messages = get_messages(fields, "messages")
    prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    check_prompt(prompt, "messages")
    return prompt


def _parse_prompt_of_preference(fields: Fields) -> Text:
    prompt = fields.get("prompt")
    is_explicit = isinstance(prompt, str) and not isinstance(fields.get("chosen"), list)
    if (isinstance(prompt, list) and prompt) or is_explicit:
        return _parse_prompt(fields)  # the prompt is explicit: its completions may be malformed
    prompt = split_preference(fields)[0]
    if not prompt:
        raise RowError(
            "data.no-common-prompt",
            "chosen, rejected: no common beginning that could be the prompt.",
            "Add a column `prompt` with the prompt.",
            dropped_as="no prompt",
        )
    return prompt


def _require_prompt(parse: ParseRow) -> ParseRow:
    """Return `parse` for a dataset with a column `prompt`: if one row has a prompt, none is guessed for another."""

    def parse_with_prompt(fields: Fields) -> TypedRow:
        prompt = get_value(fields, "prompt")
        if isinstance(prompt, str) and not prompt.strip():
            get_string(fields, "prompt")  # raises
        return parse(fields)

    return parse_with_prompt


def _select(fields: Fields, columns: Sequence[str]) -> Fields:
    """Return these columns of a row; null if the row lacks one, so that all rows have the same ones."""
    return {column: fields.get(column) for column in columns}


_PARSERS: Mapping[tuple[DatasetKind, Format], ParseRow] = {
    ("pretrain", ("text",)): _parse_text,
    ("sft", ("prompt", "completion")): _parse_demonstration,
    ("sft", MESSAGES): _parse_sft_messages,
    ("sft", ("text",)): _parse_sft_text,
}
_PROMPT_PARSERS: Mapping[Format, Callable[[Fields], Text]] = {
    ("prompt",): _parse_prompt,
    MESSAGES: _parse_prompt_of_messages,
    PAIR: _parse_prompt_of_preference,
}
