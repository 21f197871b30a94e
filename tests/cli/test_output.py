"""Tests of cli/output.py: text mode, JSON mode, and what reaches stdout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest
from rich.console import Console
from rich.table import Table

from rlhf_cli.cli.output import Output, make_console, real_stdout, reserve_stdout
from rlhf_cli.errors import Issue

ISSUE = Issue("recipe.unknown-key", "sft.bogus: unknown key.", "r.yaml:3:1", "Did you mean [bonus]?")
LINE = "error  r.yaml:3:1  sft.bogus: unknown key. Did you mean [bonus]? [recipe.unknown-key]\n"


def say_hello(console: Console) -> None:
    console.print("hello")


def test_result_in_text_mode_is_rendered(capfd: pytest.CaptureFixture[str]) -> None:
    Output().result({"stage": "x"}, say_hello)
    assert capfd.readouterr() == ("hello\n", "")


def test_result_in_json_mode_is_one_object(capfd: pytest.CaptureFixture[str]) -> None:
    with reserve_stdout():
        Output(json=True).result({"stage": "x", "text": "ä"}, say_hello)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == '{"status": "ok", "stage": "x", "text": "ä"}\n'


@pytest.mark.parametrize(
    ("output", "expected"), [(Output(), "hello\n"), (Output(quiet=True), ""), (Output(json=True), "")]
)
def test_text_is_dropped_by_json_and_quiet(capfd: pytest.CaptureFixture[str], output: Output, expected: str) -> None:
    output.text(say_hello)
    assert capfd.readouterr() == (expected, "")


def test_result_of_process_that_is_not_main_is_not_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    Output(json=True).result({"stage": "x"})
    Output().result({"stage": "x"}, say_hello)
    Output().text(say_hello)
    assert capfd.readouterr() == ("", "")


def test_follow_renders_items_in_text_mode_only(capfd: pytest.CaptureFixture[str]) -> None:
    def render(console: Console, items: Iterable[int]) -> Iterator[int]:
        for item in items:
            console.print(f"item {item}")
            yield item

    assert Output(json=True).follow(iter([1, 2]), render) == [1, 2]
    assert capfd.readouterr().out == ""
    assert Output().follow(iter([1, 2]), render) == [1, 2]
    assert capfd.readouterr().out == "item 1\nitem 2\n"


def test_error_in_text_mode_is_one_line_that_ends_with_its_code(capfd: pytest.CaptureFixture[str]) -> None:
    Output().error(2, [ISSUE])
    assert capfd.readouterr() == ("", LINE)


def test_error_on_terminal_is_wrapped_between_words_and_indented(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    Output().error(2, [ISSUE])
    text = re.sub(r"\x1b\[[0-9;]*m", "", capfd.readouterr().err)
    assert [line.rstrip() for line in text.splitlines()] == [
        "error  r.yaml:3:1  sft.bogus: unknown key. Did you mean",
        "       [bonus]? [recipe.unknown-key]",
    ]


def test_error_in_json_mode_is_an_object_and_also_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    with reserve_stdout():
        Output(json=True).error(2, [ISSUE], {"metrics": {"loss": 1.0}, "status": "ok"})
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {
        "status": "error",
        "exit_code": 2,
        "issues": [
            {
                "code": "recipe.unknown-key",
                "message": "sft.bogus: unknown key.",
                "location": "r.yaml:3:1",
                "hint": "Did you mean [bonus]?",
            }
        ],
        "metrics": {"loss": 1.0},
    }
    assert captured.err == LINE


def test_reserve_stdout_redirects_python_descriptors_and_children(capfd: pytest.CaptureFixture[str]) -> None:
    with reserve_stdout():
        print("python", flush=True)
        os.write(1, b"descriptor\n")
        subprocess.run(["echo", "child"], check=True)
        os.write(real_stdout(), b"object\n")
    print("afterwards", flush=True)
    assert capfd.readouterr() == ("object\nafterwards\n", "python\ndescriptor\nchild\n")
    assert real_stdout() == 1


def test_console_escapes_control_characters_but_writes_its_own(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table("head\x1b[2J")
    table.add_row("cell\u202e")
    make_console().print("[bold]text\x9b[/]", table)
    written = capfd.readouterr().out
    assert r"text\x9b" in written
    assert r"head\x1b[2J" in written
    assert r"cell\u202e" in written
    assert "\x1b[1m" in written  # bold


@pytest.mark.parametrize("target", ["/dev/full", "a pipe without a reader"])
def test_reporter_that_cannot_write_goes_silent_and_logs_it(target: str) -> None:
    """The run goes on: neither a later line nor the end of the process fails."""
    if target == "/dev/full":
        descriptor = os.open(target, os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    code = (
        "import logging, sys\nfrom rlhf_cli.cli.output import Output\nlogging.basicConfig()\n"
        "with Output().reporter() as reporter:\n    reporter.info('one')\n    reporter.info('two')\nprint('three')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], stdout=descriptor, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(descriptor)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("progress is no longer shown") == 1
    assert len(ended.stderr.splitlines()) == 1


def test_stdout_without_unicode_shows_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code = "from rlhf_cli.cli.output import prepare_streams\nprepare_streams()\nprint('─ é')"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\\u2500 \\xe9\n"


def test_json_with_half_a_surrogate_pair_is_valid(capfd: pytest.CaptureFixture[str]) -> None:
    with reserve_stdout():
        Output(json=True).result({"path": "a\udc80"})
    assert json.loads(capfd.readouterr().out)["path"] == "a\udc80"
