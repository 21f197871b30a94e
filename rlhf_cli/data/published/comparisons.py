"""Comparisons: two or more completions of a prompt, and a label that says which one is better."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import orjson

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.conversations import count_common_turns, parse_messages, read_messages
from rlhf_cli.data.issues import DroppedRowError, RowError
from rlhf_cli.data.published.format import (
    NoPreferenceError,
    PublishedFormat,
    as_turns,
    assistant,
    one_name,
    ordered_pair,
    ranked_pairs,
    read_choice,
    read_list,
    read_number,
    read_object,
    user,
    with_context,
)
from rlhf_cli.data.transcripts import read_prompt

_HELPSTEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\s*\n?")
_ANNOTATORS = tuple(f"annotator{number}" for number in range(1, 4))
_VOTES = {1: 1.0, 2: -1.0, 0: 0.0, "1": 1.0, "2": -1.0, "0": 0.0}
_ARENA_WINNERS = {"model_a": 1.0, "model_b": -1.0, "tie": 0.0, "tie (bothbad)": 0.0, "both_bad": 0.0, "bothbad": 0.0}
_BOOLEANS = {True: 1.0, False: 0.0, "true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


def _pandalm(fields: Fields) -> list[Fields]:
    """Decide by the majority of the annotators: 1 or 2 for the better completion, 0 for a tie."""
    values = [fields[name] for name in _ANNOTATORS if fields.get(name) not in (None, "")]
    votes = Counter(read_choice({"annotator": value}, "annotator", _VOTES) for value in values)
    prompt = with_context(fields["instruction"], fields.get("input"))
    preference, count = max(votes.items(), key=lambda vote: vote[1], default=(0.0, 0))
    if 2 * count <= votes.total():
        raise NoPreferenceError("no majority", as_turns(prompt))
    return [ordered_pair(prompt, fields["response1"], fields["response2"], preference)]


def _helpsteer2(fields: Fields) -> list[Fields]:
    preference = -read_number(fields, "preference_strength")
    return [
        ordered_pair(read_helpsteer_prompt(fields["prompt"]), fields["response_1"], fields["response_2"], preference)
    ]


def read_helpsteer_prompt(prompt: Any) -> Any:
    """Return the turns of a prompt, which are separated by `<extra_id_1>Assistant` and `<extra_id_1>User`."""
    if not isinstance(prompt, str):
        return prompt
    first, *rest = _HELPSTEER_TURN.split(prompt)
    turns = [user(first)] if first else []
    turns += [
        user(text) if name == "User" else assistant(text) for name, text in zip(rest[::2], rest[1::2], strict=True)
    ]
    return turns


def _helpsteer3(fields: Fields) -> list[Fields]:
    preference = -read_number(fields, "overall_preference")
    return [ordered_pair(read_list(fields, "context"), fields["response1"], fields["response2"], preference)]


def _arena(fields: Fields) -> list[Fields]:
    preference = read_choice(fields, "winner", _ARENA_WINNERS)
    first, second = (_arena_messages(fields, name) for name in ("conversation_a", "conversation_b"))
    common = count_common_turns(first, second)
    if preference == 0:
        raise NoPreferenceError("tie", first[:common])
    row = {"prompt": first[:common], "chosen": first[common:], "rejected": second[common:]}
    if preference < 0:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    if max(len(row["chosen"]), len(row["rejected"])) > 1:
        raise NoPreferenceError("completions differ before the last turn", first[:common])
    return [row]


def _arena_messages(fields: Fields, name: str) -> list[Any]:
    value = fields[name]
    return read_messages(parse_messages(value) or value if isinstance(value, str) else value, name)


def _arena_55k(fields: Fields) -> list[Fields]:
    first, second = (read_choice(fields, f"winner_model_{side}", _BOOLEANS) for side in "ab")
    texts = [_arena_texts(fields[name]) for name in ("prompt", "response_a", "response_b")]
    if any(len(turns) > 1 for turns in texts):
        raise NoPreferenceError("completions differ before the last turn", [user(texts[0][0])])
    return [ordered_pair(texts[0][0], texts[1][0], texts[2][0], first - second)]


def _arena_texts(value: Any) -> list[Any]:
    """Return the turns of one side, a list or a list as JSON text; other text is one turn."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return [value]
    return value if isinstance(value, list) and value else [value]


def _shp(fields: Fields) -> list[Fields]:
    preference = read_choice(fields, "labels", {1: 1.0, 0: -1.0, "1": 1.0, "0": -1.0})
    return [ordered_pair(fields["history"], fields["human_ref_A"], fields["human_ref_B"], preference)]


def _webgpt(fields: Fields) -> list[Fields]:
    preference = read_number(fields, "score_0") - read_number(fields, "score_1")
    question = fields["question"]
    prompt = question.get("full_text") if isinstance(question, dict) else question
    return [ordered_pair(prompt, fields["answer_0"], fields["answer_1"], preference)]


def _pku_better(fields: Fields) -> list[Fields]:
    return _by_id(fields, "better_response_id")


def _pku_safer(fields: Fields) -> list[Fields]:
    return _by_id(fields, "safer_response_id")


def _by_id(fields: Fields, label: str) -> list[Fields]:
    preference = read_choice(fields, label, {0: 1.0, 1: -1.0, "0": 1.0, "1": -1.0})
    return [ordered_pair(fields["prompt"], fields["response_0"], fields["response_1"], preference)]


def _nectar(fields: Fields) -> list[Fields]:
    answers = [read_object(answer, "answers") for answer in read_list(fields, "answers")]
    ranked = [(read_number(answer, "rank"), answer.get("answer", "")) for answer in answers]
    pairs = ranked_pairs(read_prompt(fields["prompt"]), ranked)
    if not pairs:
        raise DroppedRowError("no completion is ranked above another")
    return pairs


def _summaries(fields: Fields) -> list[Fields]:
    """Write the post as text that ends with `TL;DR:`, as its authors did; a summary starts with a space."""
    info = read_object(fields["info"], "info")
    if info.get("post"):
        prompt = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {info['post']}\n\nTL;DR:"
    elif info.get("article"):
        prompt = f"{info['article']}\n\nTL;DR:"
    else:
        raise RowError("data.empty-field", "info: post and article are empty.", "Fill one in, or remove the row.")
    summaries = read_list(fields, "summaries")
    choice = read_choice(fields, "choice", {0: 0, 1: 1, "0": 0, "1": 1})
    if len(summaries) != 2:
        raise RowError("data.wrong-type", f"summaries: found {len(summaries)}, expected 2.", "Remove the row.")
    texts = [f" {str(read_object(summary, 'summaries').get('text') or '').strip()}" for summary in summaries]
    return [{"prompt": prompt, "chosen": texts[int(choice)], "rejected": texts[1 - int(choice)]}]


def _kto(fields: Fields) -> list[Fields]:
    if not read_choice(fields, "label", _BOOLEANS):
        raise NoPreferenceError("label is false", fields["prompt"])
    return [{"prompt": fields["prompt"], "completion": fields["completion"]}]


def _format(name: str, datasets: str, reading: str, columns: str, convert: Any, optional: str = "") -> PublishedFormat:
    """Return the declaration of a format of pairs, whose better completions are demonstrations, too."""
    required = one_name(*columns.split())
    kinds: Any = {"preferences": required, "sft": required, "prompts": required}
    return PublishedFormat(name, datasets, reading, kinds, convert, tuple(optional.split()))


FORMATS = (
    _format(
        "pandalm",
        "PandaLM",
        "The majority of the annotators decides; ties and rows without a majority are dropped.",
        "instruction response1 response2 annotator1",
        _pandalm,
        "input annotator2 annotator3",
    ),
    _format(
        "helpsteer2",
        "HelpSteer2, file `preference/preference.jsonl.gz`",
        "A negative `preference_strength` prefers `response_1`; 0 is a tie and dropped.",
        "prompt response_1 response_2 preference_strength",
        _helpsteer2,
    ),
    _format(
        "helpsteer3",
        "HelpSteer3, configuration `preference`",
        "A negative `overall_preference` prefers `response1`; 0 is a tie and dropped.",
        "context response1 response2 overall_preference",
        _helpsteer3,
    ),
    _format(
        "arena",
        "chatbot_arena_conversations, arena-human-preference-100k and -140k, mt_bench_human_judgments",
        "`winner` decides; ties, and conversations that differ before the last turn, are dropped.",
        "conversation_a conversation_b winner",
        _arena,
    ),
    _format(
        "arena-55k",
        "arena-human-preference-55k",
        "`winner_model_a` and `winner_model_b` decide; ties and rows of several turns are dropped.",
        "prompt response_a response_b winner_model_a winner_model_b",
        _arena_55k,
        "winner_tie",
    ),
    _format(
        "shp",
        "SHP",
        "`labels` 1 prefers `human_ref_A`, 0 prefers `human_ref_B`.",
        "history human_ref_A human_ref_B labels",
        _shp,
    ),
    _format(
        "webgpt",
        "webgpt_comparisons",
        "The higher of `score_0` and `score_1` decides; ties are dropped.",
        "question answer_0 answer_1 score_0 score_1",
        _webgpt,
    ),
    _format(
        "pku-better",
        "PKU-SafeRLHF, BeaverTails pairs",
        "`better_response_id` decides, the more helpful completion.",
        "prompt response_0 response_1 better_response_id",
        _pku_better,
    ),
    _format(
        "pku-safer",
        "PKU-SafeRLHF, BeaverTails pairs",
        "`safer_response_id` decides, the safer completion.",
        "prompt response_0 response_1 safer_response_id",
        _pku_safer,
    ),
    _format(
        "nectar",
        "Nectar",
        "Each completion is paired with the next lower-ranked one, so that a row of 7 completions becomes 6 pairs.",
        "prompt answers",
        _nectar,
    ),
    _format(
        "summarize-from-feedback",
        "summarize_from_feedback, configuration `comparisons`",
        "`choice` decides. Rows are text: the post, `TL;DR:`, and a summary.",
        "info summaries choice",
        _summaries,
    ),
    PublishedFormat(
        name="kto",
        datasets="kto-mix-14k and other rows of one judged completion",
        reading="Rows whose `label` is true are demonstrations; the others are dropped. They form no pairs.",
        required={
            "sft": one_name("prompt", "completion", "label"),
            "prompts": one_name("prompt", "completion", "label"),
        },
        convert=_kto,
    ),
)
