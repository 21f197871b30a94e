"""The checks by batch and by column: counts and issues are those of parsing line by line and row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_cli.data import readers, sources
from rlhf_cli.data.batches import Batch
from rlhf_cli.data.converter import RowConverter
from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.data.splits import prompt_key
from rlhf_cli.errors import DataError, Issue
from rlhf_cli.recipe.schema import Base, Source
from rlhf_cli.stages import DatasetKind
from tests.support.datasets import find_no_run

CONTENTS = st.sampled_from(["a", "b", " b\n c", 'q"', "\\", '\\"', "é 😀", "[1]", '{"role": "user", "content": "x"}'])
FAULTY_CONTENTS = st.sampled_from(["", " ", None, 3, "\n\nHuman: a\n\nAssistant: b", [{"type": "text", "text": "x"}]])
ROLES = st.sampled_from(["user", "assistant", "system", "user", "assistant", "human", None, ["user"]])
TURNS = st.one_of(
    st.builds(lambda role, content: {"role": role, "content": content}, ROLES, CONTENTS),
    st.builds(lambda role, content: {"content": content, "role": role}, ROLES, FAULTY_CONTENTS),
    st.sampled_from([{}, {"role": "user"}, {"role": "user", "content": "a", "name": "x"}, 1, "a"]),
)
ODD_LINES = st.sampled_from(
    [
        "",
        "{",
        "[]",
        '{"prompt": "a", "prompt": "b"}',
        '{"messages": 99999999999999999999}',
        '{"a": 1}',
        '{"a": "\\ud800"}',
    ]
)


@st.composite
def valid_turns(draw: st.DrawFn, end: str) -> list[dict[str, Any]]:
    """Return turns that alternate up to one of the role `end`, perhaps after a system turn."""
    roles = ["user", "assistant"] * draw(st.integers(0, 2)) + (
        ["user", "assistant"] if end == "assistant" else ["user"]
    )
    roles = ["system", *roles] if draw(st.booleans()) else roles
    return [{"role": role, "content": draw(CONTENTS)} for role in roles]


def answers() -> st.SearchStrategy[list[dict[str, Any]]]:
    return CONTENTS.map(lambda content: [{"role": "assistant", "content": content}])


@st.composite
def common_pairs(draw: st.DrawFn) -> dict[str, Any]:
    """Return two conversations with the same beginning, and perhaps a prompt as text."""
    turns = draw(valid_turns("user"))
    row: dict[str, Any] = {"chosen": turns + draw(answers()), "rejected": turns + draw(answers())}
    return {"prompt": draw(st.sampled_from([turns[0]["content"], "a"])), **row} if draw(st.booleans()) else row


VALID_ROWS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "messages": st.fixed_dictionaries({"messages": valid_turns("assistant")}),
    "demonstrations": st.fixed_dictionaries({"prompt": valid_turns("user"), "completion": answers()}),
    "pairs": st.fixed_dictionaries({"prompt": valid_turns("user"), "chosen": answers(), "rejected": answers()}),
    "common": common_pairs(),
    "texts": st.fixed_dictionaries({"prompt": CONTENTS, "chosen": CONTENTS, "rejected": CONTENTS}),
}
LAYOUTS: list[tuple[DatasetKind, str]] = [
    ("sft", "messages"),
    ("sft", "demonstrations"),
    ("preferences", "pairs"),
    ("preferences", "common"),
    ("preferences", "texts"),
    ("prompts", "messages"),
    ("prompts", "pairs"),
    ("prompts", "common"),
]


def lines_of(rows: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[str]]:
    """Return lines, half of the time all valid, and otherwise with faulty ones among them."""

    @st.composite
    def spoil(draw: st.DrawFn) -> str:
        row = draw(rows)
        column = draw(st.sampled_from(sorted(row)))
        faulty = draw(st.one_of(FAULTY_CONTENTS, st.lists(TURNS, max_size=3), st.just("gone")))
        return json.dumps(
            {**row, column: faulty} if faulty != "gone" else {k: v for k, v in row.items() if k != column}
        )

    valid = rows.map(json.dumps)
    return st.one_of(st.lists(valid, max_size=8), st.lists(st.one_of(valid, valid, spoil(), ODD_LINES), max_size=8))


def count(path: Path, kind: DatasetKind) -> dict[str, int] | list[Issue]:
    try:
        return sources.count([Source(path=str(path), eval_fraction=0.3)], kind, find=find_no_run)
    except DataError as error:
        return list(error.issues)


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_count_by_batch_equals_count_by_row(
    tmp_path: Path, kind: DatasetKind, layout: str, data: st.DataObject
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(data.draw(lines_of(VALID_ROWS[layout]))))
    by_batch = count(path, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "parse_fast", lambda _: None)
        patch.setattr(RowConverter, "prompt_keys", lambda *_: None)
        assert count(path, kind) == by_batch


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_prompt_keys_of_valid_rows_are_those_of_parsed_rows(
    kind: DatasetKind, layout: str, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(VALID_ROWS[layout], min_size=1, max_size=8))
    batch = Batch("x:", range(1, len(rows) + 1), rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    converter, parser = (RowConverter(kind, Source(path="x"), columns, IssueCollector()) for _ in range(2))
    keys = converter.prompt_keys(batch)
    if keys is not None:
        assert list(keys) == [*map(prompt_key, parser.rows(batch))]
        assert (converter.counts, converter.text_format) == (parser.counts, parser.text_format)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("sft", {"messages": [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]}),
        ("sft", {"prompt": [("system", "s"), ("user", "a")], "completion": [("assistant", "b")]}),
        ("preferences", {"prompt": [("user", "a")], "chosen": [("assistant", "b")], "rejected": [("assistant", "c")]}),
        (
            "preferences",
            {
                "prompt": "a",
                "chosen": [("user", "a"), ("assistant", "b")],
                "rejected": [("user", "a"), ("assistant", "c")],
            },
        ),
        ("prompts", {"prompt": [("user", "a"), ("assistant", "b"), ("user", "c")]}),
        ("preferences", {"prompt": "[1, 2] is", "chosen": "{a}", "rejected": "Human: no"}),
    ],
)
def test_prompt_keys_of_usual_conversations_needs_no_parser(kind: DatasetKind, row: dict[str, Any]) -> None:
    fields = {
        column: value if isinstance(value, str) else [{"role": role, "content": text} for role, text in value]
        for column, value in row.items()
    }
    converter = RowConverter(kind, Source(path="x"), list(fields), IssueCollector())
    assert converter.prompt_keys(Batch("x:", range(1, 4), [fields] * 3)) is not None


def test_prompt_keys_of_system_turns_that_the_template_refuses_needs_the_parser(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}")
    base = Base(model="org/model", chat_template=str(template))
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    converter = RowConverter("sft", Source(path="x"), ["messages"], IssueCollector(), base=base)
    assert converter.prompt_keys(Batch("x:", [1], [{"messages": turns[1:]}])) is not None
    assert converter.prompt_keys(Batch("x:", [1], [{"messages": turns}])) is None
