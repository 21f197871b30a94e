"""Instructions in columns: a question, perhaps with a context and a system prompt, and one completion or two."""

from __future__ import annotations

from typing import Any

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.issues import RowError
from rlhf_cli.data.published.format import (
    Names,
    PublishedFormat,
    assistant,
    one_name,
    read_list,
    read_object,
    user,
    with_context,
)

QUESTION = ("instruction", "question", "query", "prompt")
CONTEXT = ("input", "context")
SYSTEM = ("system", "system_prompt")
ANSWER = ("output", "response", "completion", "answer")
CHOSEN = ("chosen", "response_j", "chosen_response")
REJECTED = ("rejected", "response_k", "rejected_response")


def convert(fields: Fields) -> list[Fields]:
    """Return the row as conversations: a system turn, the history, and the question with its context."""
    system = _value(fields, SYSTEM)
    question = with_context(_value(fields, QUESTION), _value(fields, CONTEXT))
    turns = [{"role": "system", "content": system}] if system else []
    turns += _history(fields.get("history"))
    turns.append(user(question))
    row: Fields = {"prompt": turns}
    for column, names in (("completion", ANSWER), ("chosen", CHOSEN), ("rejected", REJECTED)):
        if any(name in fields for name in names):
            row[column] = [assistant(_value(fields, names))]
    return [row]


def _self_instruct(fields: Fields) -> list[Fields]:
    """Return a row for each instance of an instruction."""
    instances = [read_object(instance, "instances") for instance in read_list(fields, "instances")]
    return [row for instance in instances for row in convert({"instruction": fields["instruction"], **instance})]


def _value(fields: Fields, names: Names) -> Any:
    """Return the field that is filled in; if none is, the first that is there, or None."""
    found = [name for name in names if name in fields]
    filled = [name for name in found if fields[name] not in (None, "")]
    if len(filled) > 1:
        message = f"{', '.join(filled)}: found several columns, expected one."
        raise RowError("data.ambiguous-columns", message, f"Set `ignore_columns: [{filled[1]}]` on the source.")
    return fields[(filled or found)[0]] if found else None


def _history(history: Any) -> list[Fields]:
    """Return earlier turns, given as pairs of a question and its answer."""
    if not history:
        return []
    if isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        return [message for question, answer in history for message in (user(question), assistant(answer))]
    message = "history: expected a list of pairs of a question and its answer."
    raise RowError("data.wrong-type", message, "Correct it, or remove the row.")


FORMATS = (
    PublishedFormat(
        name="instruction",
        datasets="Alpaca, Dolly, OpenOrca; pairs of LLaMA-Factory, orca_dpo_pairs, truthy-dpo, stack-exchange-paired",
        reading="The user turn is the question and, after a blank line, its context; `system` becomes a system turn.",
        required={
            "sft": (QUESTION, ANSWER),
            "preferences": (QUESTION, CHOSEN, REJECTED),
            "prompts": (QUESTION,),
        },
        optional=(*CONTEXT, *SYSTEM, "history"),
        convert=convert,
    ),
    PublishedFormat(
        name="self-instruct",
        datasets="self-instruct, file `seed_tasks.jsonl`",
        reading="Each of `instances` becomes a row with the `instruction`, read as above.",
        required=dict.fromkeys(("sft", "prompts"), one_name("instruction", "instances")),
        convert=_self_instruct,
    ),
)
