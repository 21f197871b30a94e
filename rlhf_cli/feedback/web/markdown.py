"""Prompts and completions as safe HTML. Links and images stay text, and nothing that a model writes can run."""

from __future__ import annotations

import functools
import html
import re
from typing import NamedTuple

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from rlhf_cli.data.rows import Text

MAX_MARKDOWN = 200_000  # characters; a longer text is shown verbatim, as parsing it would take seconds
_NOT_IN_HTML = re.compile("[\0\ud800-\udfff]")
_SPAN_RULES = ["link", "image", "autolink", "entity"]  # shown as written: an annotator must see the URL and the source
_RIGHT_TO_LEFT = {"ar", "arc", "ckb", "dv", "fa", "he", "ks", "ps", "sd", "ug", "ur", "yi"}  # languages
_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
_ATTRIBUTES = {
    "*": {"dir"},
    "p": {"class"},
    "ol": {"start"},
    "pre": {"tabindex", "role", "aria-label"},
    "td": {"class"},
    "th": {"class"},
}


class Turn(NamedTuple):
    """One turn of a conversation, as HTML."""

    role: str
    html: str


def render_turns(prompt: Text) -> list[Turn]:
    """Return the turns of a prompt. A prompt of plain text is one turn of the user."""
    if isinstance(prompt, str):
        return [Turn("user", render(prompt))]
    return [Turn(message["role"], render(message["content"])) for message in prompt]


def render_completion(text: Text) -> str:
    """Return a completion as HTML; the messages of a conversation follow each other."""
    if isinstance(text, str):
        return render(text)
    return "".join(render(message["content"]) for message in text)


@functools.lru_cache(maxsize=256)  # of texts of up to a few megabytes
def render(text: str) -> str:
    """Return Markdown as HTML that can be inserted into a page.

    Raw HTML is shown as written. Each block at the top level has its own direction: Arabic and English can follow each
    other.
    """
    text = displayable(text)
    if len(text) > MAX_MARKDOWN:
        return f'<pre class="verbatim" dir="auto">{html.escape(text)}</pre>'
    if not text.strip():
        return '<p class="empty">(empty)</p>'
    return nh3.clean(_parser().render(text), tags=_TAGS, attributes=_ATTRIBUTES, link_rel=None)


def direction(language: str) -> str:
    """Return in which direction a language is written, as in HTML; auto if the language is unknown."""
    if not language:
        return "auto"
    return "rtl" if language.lower().partition("-")[0] in _RIGHT_TO_LEFT else "ltr"


def displayable(text: str) -> str:
    """Return `text` with lone surrogates and NUL, which HTML cannot hold, replaced by U+FFFD."""
    return _NOT_IN_HTML.sub("\ufffd", text)


@functools.cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.disable([*_SPAN_RULES, "reference", "html_block", "html_inline"])
    parser.core.ruler.push("annotation", _prepare_tokens)
    parser.add_render_rule("fence", _render_code)
    parser.add_render_rule("code_block", _render_code)
    return parser


def _prepare_tokens(state: StateCore) -> None:
    """Give each block at the top level its own direction, and turn headings into paragraphs.

    The page has an outline of its own, which the headings of completions would break.
    """
    for token in state.tokens:
        if token.tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            if token.nesting == 1:
                token.attrSet("class", f"heading {token.tag}")
            token.tag = "p"
        if token.nesting == 1 and token.level == 0:  # a list with lists of other directions would have none itself
            token.attrSet("dir", "auto")
        if token.nesting == 1:
            style = str(token.attrs.pop("style", ""))
            if style.startswith("text-align:"):  # the content security policy forbids style attributes
                token.attrSet("class", f"align-{style.removeprefix('text-align:')}")


def _render_code(_renderer: object, tokens: list[Token], index: int, _options: object, _environment: object) -> str:
    """Return a block of code: from left to right, and reachable by keyboard, as it may scroll."""
    code = html.escape(tokens[index].content)
    return f'<pre dir="ltr" tabindex="0" role="group" aria-label="Code"><code>{code}</code></pre>\n'
