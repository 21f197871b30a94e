"""`rlhf annotate adjudicate`: list the items on which annotators disagree, and decide about one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_cli.cli import options
from rlhf_cli.cli.annotate.project import open_project
from rlhf_cli.cli.output import Output
from rlhf_cli.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.feedback.store import DisputedItem, Store
    from rlhf_cli.feedback.types import Annotator, Item, Tiers

SHOWN_CHARACTERS = 200  # of a prompt or a completion in the list

ItemOption = Annotated[
    int | None, typer.Option("--item", metavar="ID", help="Item to decide about; see --order.", show_default=False)
]
OrderOption = Annotated[
    str | None,
    typer.Option(
        "--order",
        metavar="ORDER",
        help="Decision: numbers of the completions from best to worst, with = for ties, such as 2>1=3>4.",
        show_default=False,
    ),
]
ExpertOption = Annotated[
    str | None,
    typer.Option(
        "--expert",
        metavar="NAME",
        help="Who decides. Defaults to the only expert or owner of the project.",
        show_default=False,
    ),
]


def adjudicate(
    item: ItemOption = None,
    order: OrderOption = None,
    rationale: Annotated[str, typer.Option("--rationale", metavar="TEXT", help="Reason for the decision.")] = "",
    expert: ExpertOption = None,
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    json: options.Json = False,
) -> None:
    """List the items on which annotators disagree, or decide about one with --item and --order."""
    if (item is None) != (order is None):
        raise RecipeError("recipe.usage", "--item and --order must be given together.", hint="Pass both or neither.")
    output = Output(json=json)
    with open_project(recipe, overrides) as project:
        if item is not None and order is not None:
            found = project.store.item(item)
            tiers = _parse_order(order, found)
            decision = project.store.decide(_find_expert(project.store, expert).id, item, tiers, rationale)
            output.result(
                {"stage": "annotate adjudicate", "decision": asdict(decision)},
                lambda console: console.print(f"item {item}: {_format_tiers(tiers, found)}", markup=False),
            )
            return
        disputed = project.store.disputed()
        names = {annotator.id: annotator.name for annotator in project.store.annotators()}
    output.result(
        {"stage": "annotate adjudicate", "disputed": [asdict(entry) for entry in disputed]},
        lambda console: _print(console, disputed, names),
    )


def _parse_order(text: str, item: Item) -> Tiers:
    """Return `2>1=3>4` as tiers of completion ids. Completions are numbered from 1 in the order of the import.

    Raises:
        RecipeError: It is malformed, or does not have each completion once.
    """
    parts = [part.split("=") for part in re.sub(r"\s", "", text).split(">")]
    count = len(item.completions)
    numbers = [number for part in parts for number in part]
    if sorted(numbers) != sorted(str(number) for number in range(1, count + 1)):
        message = f"invalid --order; found {text}, expected each number from 1 to {count} once."
        raise RecipeError("recipe.usage", message, hint="Separate the numbers by > or =, such as 2>1=3>4.")
    return tuple(tuple(item.completions[int(number) - 1].id for number in part) for part in parts)


def _find_expert(store: Store, name: str | None) -> Annotator:
    """Return the annotator `name`, or the only expert or owner if it is None."""
    annotators = store.annotators()
    if name is not None:
        found = [annotator for annotator in annotators if annotator.name == name]
    else:
        found = [annotator for annotator in annotators if annotator.role != "annotator" and annotator.is_active]
    if len(found) == 1:
        return found[0]
    message = f"annotator not found: {name}." if name else f"found {len(found)} experts, expected 1."
    hint = "Pass --expert NAME." if found else "Add one with `rlhf annotate user add NAME --expert`."
    raise RecipeError("recipe.usage", message, hint=hint)


def _print(console: Console, disputed: Sequence[DisputedItem], names: Mapping[int, str]) -> None:
    if not disputed:
        console.print("no disputed items", markup=False)
    for entry in disputed:
        waits = f"; waits for up to {entry.missing} more judgments" if entry.missing else ""
        console.print(f"item {entry.item.id}{waits}", style="bold", markup=False)
        console.print(f"  {_shorten(entry.item.prompt)}", markup=False, soft_wrap=True)
        for number, completion in enumerate(entry.item.completions, 1):
            console.print(f"  {number}  {_shorten(completion.text)}", markup=False, soft_wrap=True)
        for judgment in entry.judgments:
            tiers = _format_tiers(judgment.answer.tiers, entry.item)
            rationale = f"  {_shorten(judgment.answer.rationale)}" if judgment.answer.rationale else ""
            console.print(f"     {names[judgment.annotator_id]}: {tiers}{rationale}", markup=False, soft_wrap=True)


def _format_tiers(tiers: Tiers, item: Item) -> str:
    """Return tiers as `2>1=3>4`."""
    numbers = {completion.id: str(number) for number, completion in enumerate(item.completions, 1)}
    return ">".join("=".join(numbers[number] for number in tier) for tier in tiers) or "all bad"


def _shorten(text: object) -> str:
    """Return the beginning of a text, or the last turn of a conversation, on one line."""
    if isinstance(text, list):
        text = text[-1]["content"] if text else ""
    line = " ".join(str(text).split())
    return f"{line[:SHOWN_CHARACTERS]}…" if len(line) > SHOWN_CHARACTERS else line
