"""Dialogues: turns of {from, value}, transcripts as text, and trees of messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import ROLE_SYNONYMS, parse_messages
from rlhf_cli.data.fields import get_string
from rlhf_cli.data.issues import DroppedRowError, RowError, type_name
from rlhf_cli.data.published.format import PublishedFormat, one_name, ranked_pairs, read_object
from rlhf_cli.data.transcripts import read_transcript

_OASST_ROLES = {"prompter": "user", "assistant": "assistant"}


def _sharegpt(fields: Fields) -> list[Fields]:
    turns = _sharegpt_turns(fields.get("conversations"), "conversations")
    if fields.get("system"):
        turns.insert(0, {"role": "system", "content": fields["system"]})
    if "chosen" in fields and "rejected" in fields:
        chosen, rejected = (_sharegpt_turns(fields[name], name) for name in ("chosen", "rejected"))
        return [{"prompt": turns, "chosen": chosen, "rejected": rejected}]
    return [_demonstration(turns)]


def _demonstration(turns: list[Any]) -> Fields:
    """Return turns as a prompt and, if the last turn is the assistant's, its completion."""
    if turns and turns[-1]["role"] == "assistant":
        return {"prompt": turns[:-1], "completion": turns[-1:]}
    return {"prompt": turns, "completion": []}


def _sharegpt_turns(value: Any, name: str) -> list[Any]:
    """Return turns of {from, value} as messages. One turn need not be in a list."""
    if isinstance(value, str):
        value = parse_messages(value) or value
    turns = value if isinstance(value, list) else [value]
    messages = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            message = f"{name}[{index}]: found {type_name(turn)}, expected a turn {{from, value}}."
            raise RowError("data.wrong-type", message, "Correct it, or remove the row.")
        role = str(turn["from"]).lower()
        others = {key: item for key, item in turn.items() if key not in ("from", "value")}
        messages.append({**others, "role": ROLE_SYNONYMS.get(role, role), "content": turn["value"]})
    return messages


def _transcript(fields: Fields) -> list[Fields]:
    return [_demonstration(read_transcript(get_string(fields, "text")))]


def _oasst(fields: Fields) -> list[Fields]:
    """Return the pairs of a tree of messages."""
    rows = list(_oasst_rows(read_object(fields.get("prompt"), "prompt"), []))
    if not rows:
        raise DroppedRowError("no completion is ranked above another")
    return rows


def _oasst_rows(node: Fields, before: list[Fields]) -> Iterator[Fields]:
    """Yield the pairs among the completions of each question."""
    turns = [*before, {"role": _OASST_ROLES.get(node.get("role", ""), "?"), "content": node.get("text")}]
    replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
    if node.get("role") == "prompter":
        ranked = [(reply["rank"], reply.get("text", "")) for reply in replies if reply.get("rank") is not None]
        yield from ranked_pairs(turns, ranked)
    for reply in replies:
        yield from _oasst_rows(reply, turns)


FORMATS = (
    PublishedFormat(
        name="sharegpt",
        datasets="ShareGPT, OpenHermes-2.5, SlimOrca; pairs of LLaMA-Factory",
        reading="Turns are `{from, value}`, the completion is the last one of the assistant.",
        required={
            "sft": one_name("conversations"),
            "preferences": one_name("conversations", "chosen", "rejected"),
            "prompts": one_name("conversations"),
        },
        optional=("system",),
        convert=_sharegpt,
    ),
    PublishedFormat(
        name="transcript",
        datasets="openassistant-guanaco, OASST exports, HH-RLHF texts",
        reading="Speakers are marked by `Human:`, `### Human:` or `<\\|prompter\\|>`, and by their counterparts.",
        required={"sft": one_name("text"), "prompts": one_name("text")},
        convert=_transcript,
    ),
    PublishedFormat(
        name="oasst",
        datasets="OASST1 and OASST2, files of trees (`…_ready.trees.jsonl.gz`)",
        reading="Each completion is paired with the next lower-ranked one of the same question.",
        required={
            "preferences": one_name("message_tree_id", "prompt"),
            "prompts": one_name("message_tree_id", "prompt"),
        },
        convert=_oasst,
    ),
)
