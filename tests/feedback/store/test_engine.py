"""Databases that cannot be used are reported; settings that protect judgments are in force; backups while running."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from rlhf_cli.errors import DataError, DiskError, RecipeError, RlhfError
from rlhf_cli.feedback.store import Store, open_store
from rlhf_cli.feedback.store.engine import Database
from rlhf_cli.recipe.loader import read_recipe
from rlhf_cli.recipe.schema import Feedback
from tests.support.feedback_store import Stores, judge, new_items
from tests.support.issues import raises_issue
from tests.support.postgresql import Server

PASSWORD = "hunter2-secret"


def open_at(url: str) -> None:
    with Store(url, "project", Feedback()):
        pass


def write_text(path: Path) -> None:
    path.write_text("this is no database, but a text of more than one hundred bytes\n" * 100)


def write_foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (id INTEGER)")


def write_damaged(path: Path) -> None:
    open_at(str(path))
    content = bytearray(path.read_bytes())
    content[4096 : len(content)] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


def write_newer(path: Path) -> None:
    open_at(str(path))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE rlhf_store SET schema_version = 99")


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (write_text, "feedback.damaged"),
        (write_foreign, "feedback.foreign-file"),
        (write_damaged, "feedback.damaged"),
        (write_newer, "feedback.schema-version"),
    ],
)
def test_sqlite_file_that_is_no_store_is_refused_and_unchanged(
    tmp_path: Path, write: Callable[[Path], None], code: str
) -> None:
    path = tmp_path / "feedback.db"
    write(path)
    content = path.read_bytes()
    with raises_issue(code, error=DataError, location=str(path)):
        open_at(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("path", ["missing/feedback.db", ".", "/proc/feedback.db", "/dev/full/feedback.db"])
def test_sqlite_file_that_cannot_be_written_is_reported(tmp_path: Path, path: str) -> None:
    with raises_issue("disk.not-writable", error=DiskError):
        open_at(str(tmp_path / path))


def test_store_of_newer_schema_on_postgresql_is_refused(postgresql: Server) -> None:
    url = postgresql.create_schema()
    database = Database(url)
    with database.write() as connection:
        connection.execute(text("UPDATE rlhf_store SET schema_version = 99"))
    database.close()
    with raises_issue("feedback.schema-version", error=DataError):
        open_at(url)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{PASSWORD}@127.0.0.1:1/database",
        f"postgresql://user@127.0.0.1:1/database?password={PASSWORD}",
        f"postgres://user:{PASSWORD}@/database?host=/nonexistent",
        f"postgresql://user:{PASSWORD}@127.0.0.1:1/database?unknown_option=1",
    ],
)
def test_unreachable_postgresql_is_reported_without_password(url: str) -> None:
    with pytest.raises(RlhfError) as raised:
        open_at(url)
    assert {issue.code for issue in raised.value.issues} == {"feedback.unreachable"}
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    "url", [f"mysql://user:{PASSWORD}@host/db", f"postgresql://user:{PASSWORD}@host:port/db", "x://"]
)
def test_url_of_other_database_is_refused_without_password(url: str) -> None:
    with raises_issue("recipe.invalid-value", error=RecipeError) as issues:
        open_at(url)
    assert PASSWORD not in str(issues)


def test_location_holds_no_password(postgresql: Server) -> None:
    url = postgresql.create_schema().replace("rlhf@", f"rlhf:{PASSWORD}@")
    with Store(url, "project", Feedback()) as store:
        assert PASSWORD not in store.location
        assert "postgresql://" in store.location


def test_sqlite_uses_wal_and_full_synchronization(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "feedback.db"))
    with database.read() as connection:
        settings = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
        foreign_keys = connection.execute(text("PRAGMA foreign_keys")).scalar()
    database.close()
    assert (settings, foreign_keys) == (["wal", 2], 1)  # 2 is FULL


def test_postgresql_commits_are_on_disk_whatever_the_server_is_set_to(postgresql: Server) -> None:
    database = Database(postgresql.create_schema())
    with database.read() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
    database.close()


def test_store_connects_again_after_postgresql_dropped_its_connections(postgresql: Server) -> None:
    with Stores(postgresql.create_schema()).closing() as stores:
        store = stores(overlap=1)
        store.add_items(new_items(2))
        annotator = store.add_annotator("Ann").annotator.id
        judge(store, annotator)
        others = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        with psycopg.connect(postgresql.url) as connection:
            assert connection.execute(f"{others} AND backend_type = 'client backend'").fetchall()
        judge(store, annotator)
        assert store.status().done == 2


def test_backup_of_running_sqlite_store_is_complete(tmp_path: Path) -> None:
    """As docs/annotation.md says: VACUUM INTO reads one moment, also while others write."""
    with Stores(str(tmp_path / "feedback.db")).closing() as stores:
        store = stores(overlap=1)
        store.add_items(new_items(4))
        annotator = store.add_annotator("Ann").annotator.id
        judge(store, annotator, 2)
        expected = store.digest()
        with sqlite3.connect(tmp_path / "feedback.db") as connection:
            connection.execute("VACUUM INTO ?", [str(tmp_path / "backup.db")])
        judge(store, annotator, 1)
        assert store.digest() != expected
    with Stores(str(tmp_path / "backup.db")).closing() as restored:
        assert restored(overlap=1).digest() == expected


# --- the recipe -----------------------------------------------------------------------------------------------------

RECIPE = "name: demo\nbase: {model: org/model}\n"


def test_store_of_recipe_lies_next_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "project" / "recipe.yaml"
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("RLHF_FEEDBACK_STORE", raising=False)
    for section, expected in (("", "feedback.db"), ("feedback: {store: ../x.db}\n", "../x.db")):
        path.write_text(RECIPE + section)
        open_store(read_recipe(path, stages=()).recipe).close()
        assert (tmp_path / "project" / expected).is_file()
    path.write_text(RECIPE + "feedback: {store: 'postgresql://user@host/db'}\n")
    assert read_recipe(path, stages=()).recipe.feedback.store == "postgresql://user@host/db"


def test_environment_variable_has_precedence_over_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "guideline.md").write_text("Be kind.")
    monkeypatch.setenv("RLHF_FEEDBACK_STORE", str(tmp_path / "other.db"))
    settings = [f"feedback.guideline={tmp_path / 'guideline.md'}"]
    with open_store(read_recipe(tmp_path / "recipe.yaml", settings, stages=()).recipe) as store:
        guideline = store.guideline()
        assert guideline is not None
        assert (guideline.text, store.name) == ("Be kind.", "demo")
    assert (tmp_path / "other.db").is_file()
    assert not (tmp_path / "feedback.db").exists()


def test_guideline_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "guideline.md").write_bytes(b"\xff\xfe")
    settings = [f"feedback.guideline={tmp_path / 'guideline.md'}"]
    recipe = read_recipe(tmp_path / "recipe.yaml", settings, stages=()).recipe
    with raises_issue("recipe.unreadable", error=RecipeError, location="feedback.guideline"):
        open_store(recipe)
