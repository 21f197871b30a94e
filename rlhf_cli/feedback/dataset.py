"""Turn a snapshot of the store into preference pairs: labels, pairs, splits by prompt, and counts of what is left out.

The same snapshot and settings give the same rows in the same order. Annotators appear by pseudonym only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_cli.data.rows import PreferenceRow, Text
from rlhf_cli.data.splits import prompt_hash, prompt_key, split_by_hash
from rlhf_cli.errors import DataError
from rlhf_cli.feedback.quality.aggregation import PairLabel, aggregate
from rlhf_cli.feedback.quality.votes import first_judgments
from rlhf_cli.feedback.types import Annotator, Completion, Item, Judgment, Snapshot, Source, comparisons
from rlhf_cli.recipe.schema import Feedback

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
OWN_EXTRA = ("author",)  # columns of an item that name a person

Row = dict[str, Any]


class Dataset(NamedTuple):
    """Preference pairs, ready to be written.

    Attributes:
        splits: The rows of each split: `train`, `test` and `annotators`; an empty split is left out.
        counts: Numbers of judgments, labels and pairs by what became of them, such as {"ties": 3}.
    """

    splits: Mapping[str, Sequence[Row]]
    counts: Mapping[str, int]

    @property
    def rows(self) -> list[Row]:
        """All rows, split by split."""
        return [row for rows in self.splits.values() for row in rows]


class _Pair(NamedTuple):
    """A pair to export: the better and the worse completion, and who says so."""

    item: Item
    chosen: Completion
    rejected: Completion
    label: PairLabel
    source: Source
    judgments: Sequence[Judgment]  # the votes on the pair
    decided: str = ""  # when an expert decided it


def build(snapshot: Snapshot, settings: Feedback) -> Dataset:
    """Aggregate the judgments of ordinary items and return the pairs that they imply.

    Raises:
        DataError: The items mix text and conversations.
    """
    counts: Counter[str] = Counter(_count_judgments(snapshot, settings.sources))
    voters, held_out = held_out_annotators(snapshot, settings)
    pairs = list(_aggregated_pairs(snapshot, settings, voters, counts))
    if not held_out:
        return _split(pairs, [], snapshot, settings, counts)
    return _split(pairs, _single_pairs(snapshot, settings.sources, held_out), snapshot, settings, counts)


def held_out_annotators(snapshot: Snapshot, settings: Feedback) -> tuple[set[int], set[int]]:
    """Return the ids of the annotators whose judgments become labels, and of those who are held out.

    An annotator is held out by the hash of the pseudonym, so that the next version holds out the same ones.
    """
    judged = {judgment.annotator_id for judgment in first_judgments(snapshot, sources=settings.sources)}
    people = [one for one in snapshot.annotators if one.id in judged and one.source == "human"]
    hashes = np.array([int.from_bytes(prompt_hash(one.pseudonym), "big") for one in people], dtype=np.uint64)
    held_out = {people[index].id for index in split_by_hash(hashes, settings.held_out_annotators).held_out}
    return judged - held_out, held_out


def _count_judgments(snapshot: Snapshot, sources: Collection[Source]) -> dict[str, int]:
    """Return the number of judgments by whether they count as votes, and if not, why."""
    kinds = {item.id: item.kind for item in snapshot.items}
    counts: Counter[str] = Counter()
    for judgment in snapshot.judgments:
        if judgment.source not in sources:
            counts[f"judgments of source {judgment.source}, not exported"] += 1
        elif kinds[judgment.item_id] != "item":
            counts["judgments of gold and qualification items"] += 1
        elif not judgment.answer.tiers:
            counts["skipped judgments"] += 1
    votes = len(first_judgments(snapshot, sources=sources))
    repeats = len(snapshot.judgments) - sum(counts.values()) - votes
    return {"judgments": votes, **counts, **({"repeated judgments": repeats} if repeats else {})}


# --- pairs ----------------------------------------------------------------------------------------------------------


def _aggregated_pairs(
    snapshot: Snapshot, settings: Feedback, annotators: set[int], counts: Counter[str]
) -> Iterator[_Pair]:
    """Yield the pairs that the labels imply. A model's label is used only for pairs without votes of people."""
    labels: dict[tuple[int, int, int], tuple[PairLabel, Source]] = {}
    for source in ("human", "ai"):
        if source in settings.sources:
            for label in aggregate(snapshot, settings.aggregate, sources=(source,), annotators=annotators):
                labels.setdefault(label[:3], (label, "human" if label.by_expert else source))
    items = {item.id: item for item in snapshot.items}
    votes = _votes_by_pair(first_judgments(snapshot, sources=settings.sources, annotators=annotators))
    decided = {decision.item_id: decision.created for decision in snapshot.decisions}
    kept = _best_worst_pairs(label for label, _ in labels.values()) if settings.pairs == "best-worst" else None
    for key, (label, source) in labels.items():
        reason = _reason_to_leave_out(label, settings, kept)
        if reason:
            counts[reason] += 1
            continue
        item = items[label.item_id]
        chosen, rejected = _completion(item, label.chosen), _completion(item, label.rejected)
        if not _has_text(chosen.text):
            counts["pairs with an empty chosen completion"] += 1
        elif chosen.text == rejected.text:
            counts["pairs of equal completions"] += 1
        else:
            own = [judgment for judgment in votes.get(key, []) if judgment.source == source]
            moment = decided[item.id] if label.by_expert else ""
            yield _Pair(item, chosen, rejected, label, source, own, moment)


def _reason_to_leave_out(
    label: PairLabel, settings: Feedback, kept: Collection[tuple[int, int, int]] | None
) -> str | None:
    """Return why a label becomes no pair, as a key of the counts, or None if it becomes one."""
    if label.outcome == 0:
        return "undecided pairs" if label.is_undecided else "ties"
    if label.n_votes < settings.min_votes and not label.by_expert:
        return f"pairs with fewer than {settings.min_votes} votes"
    return "pairs other than best with worst" if kept is not None and label[:3] not in kept else None


def _single_pairs(snapshot: Snapshot, sources: Collection[Source], annotators: set[int]) -> list[_Pair]:
    """Return a pair for each vote of `annotators` that is no tie."""
    items = {item.id: item for item in snapshot.items}
    found = []
    for judgment in first_judgments(snapshot, sources=sources, annotators=annotators):
        item = items[judgment.item_id]
        for first, second, outcome in comparisons(judgment.answer.tiers, judgment.task):
            if outcome:
                better, worse = (first, second) if outcome == 1 else (second, first)
                chosen, rejected = _completion(item, better), _completion(item, worse)
                if _has_text(chosen.text) and chosen.text != rejected.text:
                    label = PairLabel(
                        item.id,
                        first,
                        second,
                        outcome,
                        is_undecided=False,
                        n_votes=1,
                        agreement=None,
                        probability=1.0,
                        margin=1.0,
                        strength=None if judgment.answer.strength is None else float(abs(judgment.answer.strength)),
                        by_expert=False,
                    )
                    found.append(_Pair(item, chosen, rejected, label, judgment.source, [judgment]))
    return found


def _votes_by_pair(judgments: Iterable[Judgment]) -> dict[tuple[int, int, int], list[Judgment]]:
    found: dict[tuple[int, int, int], list[Judgment]] = {}
    for judgment in judgments:
        for first, second, _ in comparisons(judgment.answer.tiers, judgment.task):
            found.setdefault((judgment.item_id, first, second), []).append(judgment)
    return found


def _best_worst_pairs(labels: Iterable[PairLabel]) -> set[tuple[int, int, int]]:
    """Return, for each item, the pair of the completion with the most net wins and the one with the fewest.

    Of several with equally many, the one with the smallest id counts.
    """
    wins: dict[int, Counter[int]] = {}
    for label in labels:
        of_item = wins.setdefault(label.item_id, Counter())
        of_item[label.first] += label.outcome
        of_item[label.second] -= label.outcome
    found = set()
    for item, scores in wins.items():
        best = min(scores, key=lambda one: (-scores[one], one))
        worst = min(scores, key=lambda one: (scores[one], one))
        found.add((item, min(best, worst), max(best, worst)))
    return found


def _completion(item: Item, completion: int | None) -> Completion:
    return next(one for one in item.completions if one.id == completion)


def _has_text(text: Text) -> bool:
    return bool(text.strip()) if isinstance(text, str) else any(turn["content"].strip() for turn in text)


# --- rows and splits ------------------------------------------------------------------------------------------------


def _split(
    pairs: Sequence[_Pair], single: Sequence[_Pair], snapshot: Snapshot, settings: Feedback, counts: Counter[str]
) -> Dataset:
    """Return the rows of `pairs`, with a fraction of the prompts held out, and those of held-out annotators.

    A prompt is held out by its hash, as in every dataset. Only items that were selected at random are evaluated on, and
    held-out annotators only on prompts that no row to train on has.
    """
    annotators = {one.id: one for one in snapshot.annotators}
    has_margin = all(pair.label.strength is not None for pair in (*pairs, *single))
    _check_formats([*pairs, *single])
    splits: dict[str, list[Row]] = {"train": [], "test": [], "annotators": []}
    held_out = _held_out_prompts([*pairs, *single], settings.eval_fraction)
    for pair in pairs:
        key = _prompt_key(pair)
        if key not in held_out:
            splits["train"].append(_row(pair, "train", annotators, has_margin=has_margin))
        elif pair.item.is_random:
            splits["test"].append(_row(pair, "test", annotators, has_margin=has_margin))
        else:
            counts["pairs of held-out prompts that were not selected at random"] += 1
    trained = {_prompt_key(pair) for pair in pairs} - held_out
    for pair in single:
        if _prompt_key(pair) in trained or not pair.item.is_random:
            counts["pairs of held-out annotators on other prompts"] += 1
        else:
            splits["annotators"].append(_row(pair, "annotators", annotators, has_margin=has_margin))
    counts["pairs"] = sum(map(len, splits.values()))
    return Dataset({name: rows for name, rows in splits.items() if rows}, dict(counts))


def _held_out_prompts(pairs: Sequence[_Pair], fraction: float) -> set[str]:
    keys = list(dict.fromkeys(_prompt_key(pair) for pair in pairs))
    hashes = np.array([int.from_bytes(prompt_hash(key), "big") for key in keys], dtype=np.uint64)
    return {keys[index] for index in split_by_hash(hashes, fraction).held_out}


def _prompt_key(pair: _Pair) -> str:
    return prompt_key(PreferenceRow(_clean(pair.item.prompt), "", "", None, {}))


def _check_formats(pairs: Sequence[_Pair]) -> None:
    """Raise DataError if some prompts are text and others conversations, which one dataset cannot mix."""
    formats = Counter("a conversation" if isinstance(pair.item.prompt, list) else "text" for pair in pairs)
    if len(formats) > 1:
        (common, _), (other, count) = formats.most_common(2)
        message = f"the prompts mix text and conversations; found {count:,} pairs with {other}, expected {common}."
        hint = "Keep items of the other format in a project of their own: another recipe `name`."
        raise DataError("data.mixed-formats", message, location="feedback.store", hint=hint)


def _row(pair: _Pair, split: str, annotators: Mapping[int, Annotator], *, has_margin: bool) -> Row:
    """Return the row of a pair, as docs/data.md describes its columns."""
    item, label = pair.item, pair.label
    voters = [annotators[judgment.annotator_id] for judgment in pair.judgments]
    row: Row = {
        "prompt": _clean(item.prompt),
        "chosen": _clean(_as_completion(item.prompt, pair.chosen.text)),
        "rejected": _clean(_as_completion(item.prompt, pair.rejected.text)),
    }
    if has_margin:
        row["margin"] = max(label.strength or 0.0, 0.0)
    row |= {
        "prompt_id": item.prompt_key,
        "n_votes": label.n_votes,
        "agreement": None if label.agreement is None else round(label.agreement, 6),
        "source": pair.source,
        "by_expert": label.by_expert,
        "languages": [item.language] if item.language else [],
        "fields": [item.field] if item.field else [],
        "annotators": sorted({one.pseudonym for one in voters}),
        "groups": sorted({one.role for one in voters} | ({"expert"} if label.by_expert else set())),
        "principles": sorted({judgment.principle for judgment in pair.judgments if judgment.principle}),
        "judged": max([judgment.created for judgment in pair.judgments] + [pair.decided]),
        "split": split,
    }
    extra = {name: value for name, value in item.extra.items() if name not in OWN_EXTRA}
    return row | ({"extra": _clean(extra)} if extra else {})


def _as_completion(prompt: Text, text: Text) -> Text:
    """Return a completion in the format of its prompt."""
    if isinstance(prompt, list) and isinstance(text, str):
        return [{"role": "assistant", "content": text}]
    return text


def _clean(value: Any) -> Any:
    """Return `value` with each lone surrogate replaced, which no UTF-8 file can hold."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_clean(name): _clean(item) for name, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value
