"""Model output is shown, and never runs."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_cli.data.rows import Message
from rlhf_cli.feedback.web.markdown import MAX_MARKDOWN, direction, render, render_completion, render_turns

ALLOWED_ATTRIBUTES = {"dir", "class", "start", "tabindex", "role", "aria-label"}


class Reader(HTMLParser):
    """Collects the tags, attributes and text of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[click](javascript:alert(1))",
        "![image](http://example.org/pixel.png)",
        "<http://example.org>",
        "[a]\n\n[a]: javascript:alert(1)",
        "<svg onload=alert(1)>",
        "<style>body{display:none}</style>",
        "&lt;b&gt;",
    ],
)
def test_render_markup_shows_it_as_written(text: str) -> None:
    reader = Reader(render(text))
    assert reader.tags == {"p"}
    assert " ".join(reader.text.split()) == " ".join(text.split())


@given(st.text(alphabet=st.sampled_from("<>[]()!`#*_-|:\n ab\"'=&;/\\\u202e\ud800\0"), max_size=60))
def test_render_any_text_yields_only_safe_tags_and_attributes(text: str) -> None:
    html = render(text)
    reader = Reader(html)
    assert not reader.tags & {"a", "img", "script", "style", "svg", "iframe", "input", "h1", "h2", "h3"}
    assert reader.attributes <= ALLOWED_ATTRIBUTES
    html.encode()  # no lone surrogates


def test_render_code_keeps_indentation_and_direction() -> None:
    html = render("```python\ndef f():\n    return '<b>'\n```")
    assert html.startswith('<pre dir="ltr"')
    assert Reader(html).text == "def f():\n    return '<b>'\n\n"


def test_render_list_of_right_to_left_items_has_one_direction() -> None:
    """A nested direction would make the list itself left-to-right, with its bullets outside of the box."""
    assert render("- \u0623\n- \u0628").count("dir=") == 1


def test_render_blocks_each_have_their_own_direction() -> None:
    assert render("English.\n\n\u0645\u0631\u062d\u0628\u0627").count('<p dir="auto">') == 2


@pytest.mark.parametrize(("text", "shown"), [("a\0b", "a\ufffdb"), ("a\ud800b", "a\ufffdb"), ("a\u202eb", "a\u202eb")])
def test_render_characters_that_html_cannot_hold_are_replaced(text: str, shown: str) -> None:
    assert Reader(render(text)).text.strip() == shown


@pytest.mark.parametrize("text", ["e\u0301", "\u00e9"])
def test_render_keeps_the_normal_form(text: str) -> None:
    assert Reader(render(text)).text.strip() == text


def test_render_long_text_shows_it_verbatim() -> None:
    text = "# <b>" + "x" * 5_000_000
    html = render(text)
    assert html.startswith('<pre class="verbatim"')
    assert Reader(html).text == text
    assert len(text) > MAX_MARKDOWN


def test_render_empty_text_says_so() -> None:
    assert Reader(render(" \n")).text == "(empty)"


def test_render_turns_of_conversation_keeps_roles() -> None:
    turns = render_turns([Message(role="system", content="A."), Message(role="user", content="B?")])
    assert [turn.role for turn in turns] == ["system", "user"]


def test_render_completion_of_messages_joins_them() -> None:
    messages = [Message(role="assistant", content="A."), Message(role="assistant", content="B.")]
    assert Reader(render_completion(messages)).text.split() == ["A.", "B."]


@pytest.mark.parametrize(("language", "expected"), [("ar", "rtl"), ("he-IL", "rtl"), ("en", "ltr"), ("", "auto")])
def test_direction_of_language(language: str, expected: str) -> None:
    assert direction(language) == expected
