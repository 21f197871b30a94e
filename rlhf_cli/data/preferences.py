"""Split preference rows into prompt, chosen and rejected, in each of the five formats that published datasets have."""

from __future__ import annotations

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import (
    check_completion,
    check_prompt,
    common_prefix_length,
    count_common_turns,
)
from rlhf_cli.data.fields import get_text, mixed_formats_error
from rlhf_cli.data.issues import DroppedRowError, RowError
from rlhf_cli.data.rows import Message, Text
from rlhf_cli.data.transcripts import is_transcript, read_transcript

Conversation = list[Message]


def split_preference(fields: Fields) -> tuple[Text, Text, Text]:
    """Return prompt, chosen and rejected of a row, without anything that both completions start with.

    The rejected completion may be empty. The five formats are: text with a prompt, two transcripts, two texts with a
    common beginning, conversations with a prompt, and conversations with common first turns. The last one may have the
    prompt as text, too, as UltraFeedback has.

    Raises:
        RowError: A field is missing or malformed, or the prompt cannot be found.
        DroppedRowError: A transcript is malformed.
    """
    chosen = get_text(fields, "chosen")
    rejected = get_text(fields, "rejected", may_be_empty=True)
    prompt = get_text(fields, "prompt") if fields.get("prompt") not in (None, "", []) else None
    if isinstance(chosen, str):
        if isinstance(rejected, str):
            return _split_texts(prompt, chosen, rejected)
    elif not isinstance(rejected, str):
        return _split_conversations(prompt, chosen, rejected)
    raise mixed_formats_error("rejected", rejected, chosen)


def _split_texts(prompt: Text | None, chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    if isinstance(prompt, list):
        raise mixed_formats_error("chosen", chosen, prompt)
    if is_transcript(chosen) and is_transcript(rejected):
        turns, chosen_turn, rejected_turn = _split_transcripts(chosen, rejected)
        if prompt is not None:
            _check_prompt_is_in(prompt, turns, chosen)
        return turns, chosen_turn, rejected_turn
    if prompt is not None:
        return prompt, chosen, rejected
    length = common_prefix_length(chosen, rejected)
    return chosen[:length], chosen[length:], rejected[length:]


def _check_prompt_is_in(prompt: str, turns: Conversation, transcript: str) -> None:
    """Raise RowError unless a prompt as text is the beginning of a transcript or one of its turns."""
    is_turn = any(turn["content"] == prompt.strip() for turn in turns)
    if not is_turn and not transcript.strip().startswith(prompt.strip()):
        raise RowError(
            "data.mixed-formats",
            "prompt: found text that is not in the transcripts `chosen` and `rejected`.",
            "Write only completions to `chosen` and `rejected`, or remove the column `prompt`.",
        )


def _split_transcripts(chosen: str, rejected: str) -> tuple[Conversation, Conversation, Conversation]:
    prompt, chosen_turn = _split_transcript(chosen)
    other_prompt, rejected_turn = _split_transcript(rejected)
    if prompt != other_prompt:
        raise DroppedRowError("transcripts with different prompts")
    return prompt, chosen_turn, rejected_turn


def _split_transcript(text: str) -> tuple[Conversation, Conversation]:
    turns = read_transcript(text)
    if turns[0]["role"] != "user" or len(turns) < 2:
        raise DroppedRowError("transcript without a question")
    return turns[:-1], turns[-1:]


def _split_conversations(prompt: Text | None, chosen: Conversation, rejected: Conversation) -> tuple[Text, Text, Text]:
    if isinstance(prompt, list):
        prompt, chosen, rejected = _extend_prompt(prompt, chosen, rejected)
    else:
        prompt, chosen, rejected = _split_common_turns(prompt, chosen, rejected)
    check_prompt(prompt, "prompt")
    check_completion(prompt, chosen, "chosen")
    check_completion(prompt, rejected, "rejected")
    return prompt, chosen, rejected


def _extend_prompt(
    prompt: Conversation, chosen: Conversation, rejected: Conversation
) -> tuple[Conversation, Conversation, Conversation]:
    """Move turns that both completions start with to the prompt, if it then ends with a user turn."""
    common = count_common_turns(chosen, rejected)
    if common and chosen[0]["role"] == "assistant" and chosen[common - 1]["role"] == "user":
        return [*prompt, *chosen[:common]], chosen[common:], rejected[common:]
    return prompt, chosen, rejected


def _split_common_turns(
    prompt: str | None, chosen: Conversation, rejected: Conversation
) -> tuple[Conversation, Conversation, Conversation]:
    """Use the turns that both conversations start with as the prompt. Check that they hold the text prompt, if any."""
    common = count_common_turns(chosen, rejected)
    if prompt is not None and not any(turn["content"] == prompt for turn in chosen[:common]):
        raise RowError(
            "data.mixed-formats",
            "prompt: found text that does not match any of the opening turns that `chosen` and `rejected` share.",
            "Write the prompt as messages; text is not converted to a conversation.",
        )
    if not common or chosen[common - 1]["role"] != "user":
        raise RowError(
            "data.no-common-prompt",
            f"chosen, rejected: differ starting at turn {common + 1}; the turns before it must end with a user turn.",
            "Start both with the same prompt, or add a column `prompt`.",
            dropped_as="no common prompt",
        )
    return chosen[:common], chosen[common:], rejected[common:]
