"""The published preference formats that training reads, too: each pair becomes an item with one judgment."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rlhf_cli.data.batches import Fields
from rlhf_cli.data.preferences import split_preference
from rlhf_cli.data.published import FORMATS as PUBLISHED
from rlhf_cli.data.published import PublishedFormat
from rlhf_cli.data.rows import Text
from rlhf_cli.feedback.formats.format import FeedbackFormat, ParsedRow, judge_item, make_item, read_language
from rlhf_cli.feedback.types import Answer, TaskKind

REMARK = "The format does not say who judged; ties are skipped."


def make_formats(without: Iterable[str]) -> list[FeedbackFormat]:
    """Return the formats of preferences that training reads, without those of these names."""
    skipped = set(without)
    return [
        FeedbackFormat(
            name=published.name,
            origin=published.datasets,
            reading=published.reading,
            columns=published.required["preferences"],
            convert=_converter(published),
            optional=(*published.optional, "judge"),
            remark=REMARK,
            is_training_format=True,
        )
        for published in PUBLISHED.values()
        if "preferences" in published.required and published.name not in skipped
    ]


def _converter(published: PublishedFormat) -> Callable[[Fields], Iterable[ParsedRow]]:
    def convert(fields: Fields) -> Iterable[ParsedRow]:
        judge = fields.get("judge")
        annotator = judge if isinstance(judge, str) and judge else published.name
        language = read_language(fields.get("language"))
        pairs = [split_preference(row) for row in published.read("preferences", fields, ())]
        for prompt, ranked in _join_pairs(pairs):
            item = make_item(prompt, ranked, language=language)
            answer = Answer(tuple((index,) for index in range(len(ranked))))
            task: TaskKind = "pair" if len(ranked) == 2 else "rank"
            yield ParsedRow(item, (judge_item(item, annotator, answer, task=task),))

    return convert


def _join_pairs(pairs: Iterable[tuple[Text, Text, Text]]) -> list[tuple[Text, list[Text]]]:
    """Return each prompt with its completions, best first. Pairs that follow each other form one ranking."""
    rankings: list[tuple[Text, list[Text]]] = []
    for prompt, chosen, rejected in pairs:
        if rankings and rankings[-1][0] == prompt and rankings[-1][1][-1] == chosen:
            rankings[-1][1].append(rejected)
        else:
            rankings.append((prompt, [chosen, rejected]))
    return rankings
