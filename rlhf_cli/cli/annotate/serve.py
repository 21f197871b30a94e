"""`rlhf annotate serve`: the page on which annotators judge, and the owner's overview."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_cli.cli import options
from rlhf_cli.cli.annotate.project import open_project
from rlhf_cli.cli.annotate.users import DEFAULT_ADDRESS, invite_link
from rlhf_cli.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.feedback.store import Store

OWNER = "owner"  # name of the owner's account
ANY_ADDRESS = ("0.0.0.0", "::")

Host = Annotated[str, typer.Option("--host", metavar="HOST", help="Name or address to listen on.")]
Port = Annotated[int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Port; 0 is any free one.")]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="Name by which browsers may address the page, such as that of a proxy with TLS. Can be repeated. "
        "Loopback and --host are always allowed.",
        show_default=False,
    ),
]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allowed_host: AllowedHosts = None,
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    json: options.Json = False,
) -> None:
    """Serve the page on which annotators judge, until Ctrl-C. Prints a link for the owner.

    The store is created if it does not exist.
    """
    with open_project(recipe, overrides) as project:
        from rlhf_cli.feedback.web import server
        from rlhf_cli.feedback.web.app import create_app

        app = create_app(project.store, server.hosts_of(host, allowed_host or ()))
        # From here on, Ctrl-C is the way to end; uvicorn raises it again once it has stopped.
        with contextlib.suppress(KeyboardInterrupt), server.listen(host, port) as listening:
            address = server.address_of(listening, "127.0.0.1" if host in ANY_ADDRESS else host)
            link, items = invite_link(address, _owner_token(project.store)), project.store.status().items
            Output(json=json).result(
                {
                    "stage": "annotate serve",
                    "project": project.recipe.name,
                    "store": project.store.location,
                    "address": address,
                    "owner": link,
                    "items": items,
                },
                lambda console: _print(console, f"{project.recipe.name} ({project.store.location})", link, items),
            )
            server.make_server(app).run(sockets=[listening])


def _owner_token(store: Store) -> str:
    """Return a new invite of the owner, whose account is created if it does not exist."""
    exists = any(annotator.name == OWNER for annotator in store.annotators())
    return (store.renew_invite(OWNER) if exists else store.add_annotator(OWNER, role="owner")).token


def _print(console: Console, title: str, link: str, items: int) -> None:
    address = link.partition("/login")[0]
    option = "" if address == DEFAULT_ADDRESS else f" --address {address}"
    lines = [
        title,
        f"  page        {address}",
        f"  owner       {link}",
        f"  annotators  rlhf annotate user add NAME{option}    prints an invite link",
        *(["  no items    rlhf annotate import SOURCE    adds prompts with completions"] if not items else []),
        "Links work once. Press Ctrl-C to stop.",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
