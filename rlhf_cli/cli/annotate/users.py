"""`rlhf annotate user`: add, list and deactivate annotators, and renew their invites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_cli.cli import options
from rlhf_cli.cli.annotate.project import open_project
from rlhf_cli.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.feedback.store import Invite
    from rlhf_cli.feedback.types import Annotator

DEFAULT_ADDRESS = "http://127.0.0.1:8000"

user = typer.Typer(help="Add, list and deactivate annotators, and renew their invites.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the annotator. It is never exported.")]
Address = Annotated[
    str, typer.Option("--address", metavar="URL", help="Address at which annotators reach `rlhf annotate serve`.")
]
Languages = Annotated[
    list[str] | None,
    typer.Option(
        "--language",
        metavar="TAG",
        help="BCP 47 tag of items to ask about, such as en. Can be repeated. Defaults to all.",
        show_default=False,
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="FIELD",
        help="Subject of items to ask about. Can be repeated. Defaults to all.",
        show_default=False,
    ),
]


@user.command()
def add(
    name: Name,
    language: Languages = None,
    field: Fields = None,
    expert: Annotated[bool, options.Flag("--expert", help="Let the annotator decide about disputed items.")] = False,
    owner: Annotated[bool, options.Flag("--owner", help="Also show the overview of the project.")] = False,
    address: Address = DEFAULT_ADDRESS,
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    json: options.Json = False,
) -> None:
    """Add an annotator and print a one-time invite link."""
    with open_project(recipe, overrides) as project:
        role = "owner" if owner else "expert" if expert else "annotator"
        invite = project.store.add_annotator(name, role=role, languages=language or (), fields=field or ())  # type: ignore[arg-type]
    _print_invite(Output(json=json), "add", invite, address)


@user.command()
def renew(
    name: Name,
    address: Address = DEFAULT_ADDRESS,
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    json: options.Json = False,
) -> None:
    """Print a new invite link. Earlier links become invalid, and a deactivated annotator becomes active."""
    with open_project(recipe, overrides) as project:
        invite = project.store.renew_invite(name)
    _print_invite(Output(json=json), "renew", invite, address)


@user.command()
def deactivate(
    name: Name, recipe: options.Recipe = None, overrides: options.Set = None, json: options.Json = False
) -> None:
    """Log an annotator out and invalidate the invite. All judgments are kept."""
    with open_project(recipe, overrides) as project:
        project.store.deactivate(name)
    Output(json=json).result(
        {"stage": "annotate user deactivate", "annotator": name},
        lambda console: console.print(f"deactivated {name}", markup=False, soft_wrap=True),
    )


@user.command("list")
def list_(recipe: options.Recipe = None, overrides: options.Set = None, json: options.Json = False) -> None:
    """List all annotators with their pseudonym, role, languages and fields."""
    with open_project(recipe, overrides) as project:
        annotators = project.store.annotators()
    Output(json=json).result(
        {"stage": "annotate user list", "annotators": [_annotator_object(annotator) for annotator in annotators]},
        lambda console: _print_annotators(console, annotators),
    )


def invite_link(address: str, token: str) -> str:
    """Return the link with which an annotator logs in. The token is behind `#`, which browsers do not send."""
    return f"{address.rstrip('/')}/login#{token}"


def _print_invite(output: Output, command: str, invite: Invite, address: str) -> None:
    link = invite_link(address, invite.token)

    def render(console: Console) -> None:
        console.print(f"{invite.annotator.name} ({invite.annotator.pseudonym}, {invite.annotator.role})", markup=False)
        console.print(link, markup=False, soft_wrap=True)
        console.print("The link works once.", style="dim")

    output.result({"stage": f"annotate user {command}", **_annotator_object(invite.annotator), "link": link}, render)


def _annotator_object(annotator: Annotator) -> dict[str, Any]:
    return {
        "annotator": annotator.name,
        "pseudonym": annotator.pseudonym,
        "role": annotator.role,
        "languages": list(annotator.languages),
        "fields": list(annotator.fields),
        "source": annotator.source,
        "active": annotator.is_active,
    }


def _print_annotators(console: Console, annotators: list[Annotator]) -> None:
    from rich.table import Table

    if not annotators:
        console.print("no annotators; add one with `rlhf annotate user add NAME`", markup=False)
        return
    table = Table("name", "pseudonym", "role", "languages", "fields", "active", box=None, padding=(0, 2, 0, 0))
    for annotator in annotators:
        role = annotator.role if annotator.source == "human" else "model"
        languages, fields = ", ".join(annotator.languages) or "all", ", ".join(annotator.fields) or "all"
        table.add_row(
            annotator.name, annotator.pseudonym, role, languages, fields, "yes" if annotator.is_active else "no"
        )
    console.print(table)
