"""`rlhf annotate serve`: one command on a fresh machine, links, and a clean end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from rlhf_cli.feedback.web.server import address_of, hosts_of, listen
from tests.support.issues import raises_issue

RECIPE = "name: shop\nbase: {model: org/model}\nfeedback: {task: pair}\n"
pytestmark = pytest.mark.subprocess


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a folder with a recipe, on any free port."""
    (folder / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "rlhf_cli", "annotate", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def read_object(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    found: dict[str, str] = json.loads(line)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_creates_the_store_answers_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, "--json") as process:
        ready = read_object(process)
        assert ready["project"] == "shop"
        assert (tmp_path / "feedback.db").exists()
        with urlopen(f"{ready['address']}/login") as page:
            assert "shop" in page.read().decode()
            assert "server" not in page.headers
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert (rest, errors) == ("", "")


def test_serve_prints_the_owners_link_and_how_to_invite(tmp_path: Path) -> None:
    with serving(tmp_path) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(6)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    text = "".join(lines)
    assert "/login#" in text
    assert "rlhf annotate user add NAME --address http://127.0.0.1:" in text
    assert "Ctrl-C" in lines[-1]
    assert errors == ""


def test_serve_again_prints_a_new_link_of_the_same_owner(tmp_path: Path) -> None:
    links = []
    for _ in range(2):
        with serving(tmp_path, "--json") as process:
            links.append(read_object(process)["owner"].partition("#")[2])
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    assert len(set(links)) == 2


def test_serve_with_allowed_host_answers_to_that_name_only(tmp_path: Path) -> None:
    with serving(tmp_path, "--json", "--allowed-host", "rlhf.example.org") as process:
        address = read_object(process)["address"]
        urlopen(Request(f"{address}/login", headers={"Host": "rlhf.example.org"})).close()
        with pytest.raises(HTTPError, match="400"):
            urlopen(Request(f"{address}/login", headers={"Host": "other.example.org"}))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def test_listen_on_a_port_in_use_is_an_issue() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        raises_issue("recipe.address-unavailable"),
        listen("127.0.0.1", taken.getsockname()[1]),
    ):
        pass


@pytest.mark.parametrize("host", ["host.invalid", "203.0.113.1"])
def test_listen_on_an_address_of_another_machine_is_an_issue(host: str) -> None:
    with raises_issue("recipe.address-unavailable"), listen(host, 0):
        pass


def test_address_of_ipv6_has_brackets() -> None:
    with listen("::1", 0) as listening:
        assert address_of(listening, "::1").startswith("http://[::1]:")


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [("0.0.0.0", ["a.org"], {"a.org"}), ("10.0.0.5", [], {"10.0.0.5", "[10.0.0.5]"}), ("127.0.0.1", [], set())],
)
def test_hosts_of_address_are_loopback_itself_and_allowed(host: str, allowed: list[str], expected: set[str]) -> None:
    assert {*hosts_of(host, allowed)} - {*hosts_of("127.0.0.1", [])} == expected


def test_listening_socket_names_tcp_so_that_replies_are_not_delayed() -> None:
    """asyncio sets TCP_NODELAY only on sockets that name their protocol; otherwise a reply waits 40 ms for an ACK."""
    with listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
