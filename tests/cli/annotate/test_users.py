"""`rlhf annotate user`, `status` and `adjudicate`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlhf_cli.feedback.store import Store, open_store
from rlhf_cli.recipe.loader import read_recipe
from tests.support.command import Rlhf
from tests.support.feedback_store import judge, new_item

RECIPE = "name: demo\nbase: {model: org/model}\nfeedback: {overlap: 2, max_overlap: 2}\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a recipe whose store is next to it."""
    monkeypatch.delenv("RLHF_FEEDBACK_STORE", raising=False)
    path = tmp_path / "feedback" / "recipe.yaml"
    path.parent.mkdir()
    path.write_text(RECIPE)
    return path


def open_its_store(recipe: Path) -> Store:
    return open_store(read_recipe(recipe, stages=()).recipe)


def test_user_add_prints_a_link_that_works_once(rlhf: Rlhf, recipe: Path) -> None:
    words = ("--language", "de", "--language", "en", "--field", "law", "--expert", "--address", "https://host/")
    made = rlhf("annotate", "user", "add", "Ann", *words, "-r", recipe, "--json").json
    address, _, token = made["link"].partition("#")
    assert address == "https://host/login"
    with open_its_store(recipe) as store:
        annotator = store.redeem(token).annotator
    assert (annotator.name, annotator.role) == ("Ann", "expert")
    assert (annotator.languages, annotator.fields) == (("de", "en"), ("law",))
    again = rlhf("annotate", "user", "add", "Ann", "-r", recipe)
    assert (again.code, again.codes) == (3, ["feedback.duplicate-annotator"])


def test_user_renew_and_deactivate_invalidate_links(rlhf: Rlhf, recipe: Path) -> None:
    first = rlhf("annotate", "user", "add", "Ann", "-r", recipe)
    assert "http://127.0.0.1:8000/login#" in first.out
    second = rlhf("annotate", "user", "renew", "Ann", "-r", recipe, "--json").json["link"]
    assert second not in first.out
    assert rlhf("annotate", "user", "deactivate", "Ann", "-r", recipe).code == 0
    (listed,) = rlhf("annotate", "user", "list", "-r", recipe, "--json").json["annotators"]
    assert (listed["annotator"], listed["active"]) == ("Ann", False)
    unknown = rlhf("annotate", "user", "renew", "Bob", "-r", recipe)
    assert (unknown.code, unknown.codes) == (3, ["feedback.not-found"])


def test_status_of_new_store_is_empty(rlhf: Rlhf, recipe: Path) -> None:
    found = rlhf("annotate", "status", "-r", recipe, "--json").json
    assert (found["items"], found["judgments"], found["annotators"]) == (0, 0, [])
    assert "0 items" in rlhf("annotate", "status", "-r", recipe).out


def test_adjudicate_lists_disputed_items_and_stores_a_decision(rlhf: Rlhf, recipe: Path) -> None:
    with open_its_store(recipe) as store:
        (item,) = store.add_items([new_item(completions=3)]).ids
        for name, agree in (("Ann", True), ("Bob", False)):
            judge(store, store.add_annotator(name).annotator.id, agree=agree)
        store.add_annotator("Eve", role="expert")
    listed = rlhf("annotate", "adjudicate", "-r", recipe)
    assert "Ann: 1>2>3" in listed.out
    assert "Bob: 3>2>1" in listed.out
    assert rlhf("annotate", "status", "-r", recipe, "--json").json["disputed"] == 1
    decided = rlhf("annotate", "adjudicate", "--item", str(item), "--order", "2 > 1 = 3", "-r", recipe, "--json").json
    first, second, third = (completion for completion in (1, 2, 3))
    assert decided["decision"]["tiers"] == [[second], [first, third]]
    with open_its_store(recipe) as store:
        assert store.snapshot().decisions[0].tiers == ((second,), (first, third))
    assert "no disputed items" in rlhf("annotate", "adjudicate", "-r", recipe).out


@pytest.mark.parametrize(
    "words",
    [
        ("--item", "1"),
        ("--order", "1>2"),
        ("--item", "1", "--order", "1>2"),
        ("--item", "1", "--order", "1>2>x"),
        ("--item", "1", "--order", "1>2>3"),
        ("--item", "1", "--order", "1>2>3", "--expert", "Bob"),
    ],
)
def test_adjudicate_with_invalid_options_is_refused(rlhf: Rlhf, recipe: Path, words: tuple[str, ...]) -> None:
    with open_its_store(recipe) as store:
        store.add_items([new_item(completions=3)])
    ended = rlhf("annotate", "adjudicate", *words, "-r", recipe)
    assert (ended.code, ended.codes) == (2, ["recipe.usage"])


def test_annotate_without_the_extra_names_the_command_that_installs_it(
    rlhf: Rlhf, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("rlhf_cli.feedback.store")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    ended = rlhf("annotate", "status", "-r", recipe)
    assert (ended.code, ended.codes) == (2, ["recipe.missing-package"])
    assert "pip install 'rlhf[annotate]'" in ended.err
