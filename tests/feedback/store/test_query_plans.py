"""Serving and storing an item never scans a table that grows with the project."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sqlalchemy import event

from tests.support.feedback_store import Stores, agreeing, new_item, new_items

GROWING = r"rlhf_(item|completion|assignment|judgment|decision|session|annotator|invite)\b"


def test_statements_of_one_item_use_indexes(tmp_path: Path) -> None:
    with Stores(str(tmp_path / "feedback.db")).closing() as stores:
        store = stores(repeats=0.5, gold={"path": "g.jsonl", "share": 0.2}, qualification={"path": "q.jsonl"})
        kinds = [new_item("gold", kind="gold"), new_item("test", kind="qualification")]
        store.add_items([*kinds, *new_items(40, language="de"), *new_items(40, language="en", completions=3)])
        annotator = store.add_annotator("Ann", languages=["de", "en"])
        statements: dict[str, Any] = {}

        def remember(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
            statements[statement] = parameters

        engine = store._database.engine
        event.listen(engine, "before_cursor_execute", remember)
        session = store.redeem(annotator.token)
        for number in range(30):
            assert store.annotator_of(session.token) is not None
            (assignment,) = store.assign(session.annotator.id)
            receipt = store.submit(session.annotator.id, assignment.id, agreeing(assignment), f"{number}")
            store.progress(session.annotator.id)
        stores.clock.now += 1e6
        reopened = store.reopen(session.annotator.id, receipt.judgment_id)
        store.submit(session.annotator.id, reopened.id, agreeing(reopened), "undo")
        event.remove(engine, "before_cursor_execute", remember)
        assert len(statements) > 25
        scans = []
        with engine.connect() as connection:
            for statement, parameters in statements.items():
                if re.match(r"SELECT|UPDATE|INSERT", statement):
                    values = parameters[0] if isinstance(parameters, list) else parameters
                    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
                    scans += [(row.detail, statement) for row in plan if re.match(f"SCAN {GROWING}", row.detail)]
        assert scans == []
