"""The address on which the page is served, and its server."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from starlette.applications import Starlette
from uvicorn import Config, Server

from rlhf_cli.errors import RecipeError
from rlhf_cli.feedback.web.app import LOOPBACK

BACKLOG = 256  # connections that wait until the server accepts them
GRACE = 5  # seconds in which running requests may end


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens on an address. Requests wait in it until the server handles them.

    Args:
        host: Name or address.
        port: Port; 0: any free one.

    Raises:
        RecipeError: The address is in use or cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)  # without the protocol, asyncio keeps Nagle's 40 ms delay
    except OSError as error:
        raise _address_error(host, port, error) from None
    with listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError as error:
            raise _address_error(host, port, error) from None
        yield listening


def _address_error(host: str, port: int, error: OSError) -> RecipeError:
    message = f"cannot listen on {host}, port {port}: {error.strerror}."
    hint = "Pass another one with --port or --host; port 0 is any free one."
    return RecipeError("recipe.address-unavailable", message, hint=hint)


def address_of(listening: socket.socket, host: str) -> str:
    """Return the address of the page on this machine, as in http://127.0.0.1:8000."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


def hosts_of(host: str, allowed: Sequence[str]) -> list[str]:
    """Return the names by which the page may be addressed: loopback, `host`, and those that the owner allows."""
    return [*LOOPBACK, *([host, f"[{host}]"] if host not in ("0.0.0.0", "::") else []), *allowed]


def make_server(app: Starlette) -> Server:
    """Return the server of an application. It stops at SIGINT and SIGTERM, once running requests are finished.

    It has no access log, which would tell who worked when, and nobody needs to know.
    """
    config = Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE, lifespan="off"
    )
    return Server(config)
