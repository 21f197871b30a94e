"""Published datasets whose rows hold more than a pair: ratings, strengths, ties, and several annotators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.issues import DroppedRowError, RowError
from rlhf_cli.data.preferences import split_preference
from rlhf_cli.data.published.comparisons import read_helpsteer_prompt
from rlhf_cli.data.published.format import (
    as_turns,
    one_name,
    read_choice,
    read_list,
    read_number,
    read_object,
    with_context,
)
from rlhf_cli.data.rows import Text
from rlhf_cli.feedback.formats.format import (
    FeedbackFormat,
    ParsedRow,
    finite,
    judge_item,
    make_item,
    pair_answer,
    read_language,
    read_text_field,
    tiers_of_scores,
)
from rlhf_cli.feedback.types import MAX_STRENGTH, Answer, NewItem, NewJudgment

NEITHER = -100  # HelpSteer2's strength if neither response is good
ULTRAFEEDBACK_JUDGE = "gpt-4"  # which rated all of its completions (arXiv 2310.01377, section 2)
_PANDALM_ANNOTATORS = ("annotator1", "annotator2", "annotator3")
_PANDALM_VOTES = {1: 1.0, 2: -1.0, 0: 0.0, "1": 1.0, "2": -1.0, "0": 0.0}
ANONYMOUS = "The dataset does not say who judged; its annotators are numbered by their position in the row."


def _pandalm(fields: Fields) -> Iterable[ParsedRow]:
    """Return the comparison with the vote of each annotator: 1 or 2 for the better completion, 0 for a tie."""
    prompt = as_turns(with_context(fields["instruction"], fields.get("input")))
    # Some completions of the published test set are the JSON value true: the conversion to JSON read the text `True`.
    texts = [str(text) if isinstance(text, bool) else text for text in (fields["response1"], fields["response2"])]
    models = str(fields.get("cmp_key") or "").split("_")
    item = make_item(prompt, texts, models if len(models) == 2 else ())
    votes = {name: fields[name] for name in _PANDALM_ANNOTATORS if fields.get(name) not in (None, "")}
    judgments = []
    for name in votes:
        answer = pair_answer(read_choice(votes, name, _PANDALM_VOTES))
        key = "" if fields.get("idx") is None else f"pandalm:{fields['idx']}:{name}"
        judgments.append(judge_item(item, name, answer, task="pair", key=key))
    yield ParsedRow(item, tuple(judgments))


def _helpsteer2(fields: Fields) -> Iterable[ParsedRow]:
    prompt = read_helpsteer_prompt(fields["prompt"])
    item = make_item(as_turns(prompt), [fields["response_1"], fields["response_2"]])
    votes = fields.get("all_preferences_unprocessed") or [
        {
            "strength": read_number(fields, "preference_strength"),
            "justification": " ".join(
                filter(None, (read_text_field(fields, f"preference_{part}") for part in ("statement", "elaboration")))
            ),
        }
    ]
    yield ParsedRow(item, _votes(item, "helpsteer2", votes, "strength", "justification"))


def _helpsteer3(fields: Fields) -> Iterable[ParsedRow]:
    item = make_item(
        read_list(fields, "context"),
        [fields["response1"], fields["response2"]],
        language=read_language(fields.get("language")),
        field=read_text_field(fields, "domain"),
    )
    votes = fields.get("individual_preference") or [{"score": read_number(fields, "overall_preference")}]
    yield ParsedRow(item, _votes(item, "helpsteer3", votes, "score", "reasoning"))


def _votes(item: NewItem, dataset: str, votes: Any, strength: str, rationale: str) -> tuple[NewJudgment, ...]:
    """Return the judgment of each annotator, whose strength is negative if the first completion is better."""
    judgments = []
    for number, vote in enumerate(read_list({"votes": votes}, "votes"), 1):
        given = read_object(vote, "votes")
        value = read_number(given, strength)
        text = read_text_field(given, rationale)
        if value == NEITHER:
            answer = Answer((), all_bad=True, rationale=text)
        elif value == int(value) and abs(value) <= MAX_STRENGTH:
            answer = pair_answer(-value, strength=int(value), rationale=text)
        else:
            message = f"{strength}: found {value:g}, expected a whole number from -{MAX_STRENGTH} to {MAX_STRENGTH}."
            raise RowError("data.invalid-label", message, "Correct it, or remove the row.")
        judgments.append(judge_item(item, f"{dataset}-{number}", answer, task="pair"))
    return tuple(judgments)


def _ultrafeedback(fields: Fields) -> Iterable[ParsedRow]:
    """Return all completions of an instruction, ranked by their overall score or else by their mean rating."""
    rated = [read_object(completion, "completions") for completion in read_list(fields, "completions")]
    rated = _distinct(rated)
    item = make_item(
        as_turns(fields["instruction"]),
        [completion.get("response") for completion in rated],
        [read_text_field(completion, "model") for completion in rated],
    )
    ratings = [_ratings(completion) for completion in rated]
    overall = [finite(completion.get("overall_score")) for completion in rated]
    means = [sum(given.values()) / len(given) if given else None for given in ratings]
    scores = overall if None not in overall else means
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        yield ParsedRow(item, unusable=("a completion without a rating",))
        return
    answer = Answer(tiers_of_scores(known), criteria={index: given for index, given in enumerate(ratings) if given})
    yield ParsedRow(item, (judge_item(item, ULTRAFEEDBACK_JUDGE, answer, source="ai"),))


def _distinct(completions: Sequence[Fields]) -> list[Fields]:
    """Return the completions without those whose text an earlier one has."""
    by_text: dict[Any, Fields] = {}
    for completion in completions:
        by_text.setdefault(str(completion.get("response")), completion)
    return list(by_text.values())


def _ratings(completion: Fields) -> dict[str, int]:
    """Return the rating of each aspect, 1 to 5. `N/A` is none."""
    annotations = read_object(completion.get("annotations") or {}, "annotations")
    found = {aspect: finite(read_object(given, aspect).get("Rating")) for aspect, given in annotations.items()}
    return {aspect: int(value) for aspect, value in found.items() if value is not None and value in range(1, 6)}


def _pair(annotator: str) -> Any:
    def convert(fields: Fields) -> Iterable[ParsedRow]:
        prompt, chosen, rejected = split_preference(fields)
        yield pair_row(prompt, chosen, rejected, annotator)

    return convert


def pair_row(prompt: Text, chosen: Text, rejected: Text, annotator: str) -> ParsedRow:
    """Return a comparison whose first completion is better."""
    if not prompt:
        raise DroppedRowError("no prompt")
    item = make_item(prompt, [chosen, rejected])
    return ParsedRow(item, (judge_item(item, annotator, pair_answer(1.0), task="pair"),))


FORMATS = (
    FeedbackFormat(
        name="hh-rlhf",
        origin="HH-RLHF",
        reading="Two transcripts, whose last turn of the assistant is the completion. One judgment by `hh-rlhf`.",
        columns=one_name("chosen", "rejected"),
        convert=_pair("hh-rlhf"),
        remark="The dataset does not say who judged, and has no ties.",
    ),
    FeedbackFormat(
        name="preferences",
        origin="preference data for TRL and `data.preferences`, ultrafeedback_binarized",
        reading="`chosen` is better. One judgment by `preferences`.",
        columns=one_name("prompt", "chosen", "rejected"),
        convert=_pair("preferences"),
        remark="The rows do not say who judged, and have no ties.",
    ),
    FeedbackFormat(
        name="ultrafeedback",
        origin="UltraFeedback",
        reading="Completions ranked by `overall_score`, or by their mean rating. One judgment by `gpt-4`, source ai.",
        columns=one_name("instruction", "completions"),
        convert=_ultrafeedback,
        optional=("models",),
        remark="GPT-4 judged, so all judgments have the source ai.",
    ),
    FeedbackFormat(
        name="helpsteer2",
        origin="HelpSteer2, file `preference/preference.jsonl.gz`",
        reading="A strength from -3 to 3 per annotator, negative if `response_1` is better; -100: neither is good.",
        columns=one_name("prompt", "response_1", "response_2", "preference_strength"),
        convert=_helpsteer2,
        optional=("all_preferences_unprocessed", "preference_statement", "preference_elaboration"),
        remark=ANONYMOUS,
    ),
    FeedbackFormat(
        name="helpsteer3",
        origin="HelpSteer3, configuration `preference`",
        reading="A score from -3 to 3 per annotator, negative if `response1` is better. `domain` becomes the field.",
        columns=one_name("context", "response1", "response2", "overall_preference"),
        convert=_helpsteer3,
        optional=("individual_preference", "domain"),
        remark=ANONYMOUS,
    ),
    FeedbackFormat(
        name="pandalm",
        origin="PandaLM",
        reading="The votes of three annotators: 1 or 2 for the better completion, 0 for a tie.",
        columns=one_name("instruction", "response1", "response2", "annotator1"),
        convert=_pandalm,
        optional=("input", "annotator2", "annotator3", "cmp_key"),
    ),
)
