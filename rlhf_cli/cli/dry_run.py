"""What `--dry-run` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf_cli.cli.output import console

if TYPE_CHECKING:
    from rich.text import Text

EXAMPLES = {  # by stage
    "pretrain": "one text, which is packed with others",
    "sft": "one row (the loss is on what {mark})",
    "reward": "one pair's chosen answer, which {mark}",
    "ppo": "one prompt",
}


def print_preview(shown: Mapping[str, Any]) -> None:
    """What `--dry-run` found out: rows, tokens, one example with its loss mask."""
    out = console()
    out.print(f"{shown['stage']}", style="bold")
    width = max((len(name) for name in shown["facts"]), default=0)
    for name, value in shown["facts"].items():
        text = f"{value:,}" if isinstance(value, int) else value
        out.print(f"  {name:<{width}}  {text}", markup=False, soft_wrap=True)
    if shown.get("example"):
        color = out.is_terminal and not out.no_color
        mark = "is green" if color else "stands in ⟦…⟧"
        out.print(f"  {EXAMPLES[shown['stage']].format(mark=mark)}:", style="dim")
        out.print(_with_mask(shown["example"], color=color), markup=False, soft_wrap=True)


def _with_mask(example: str, *, color: bool) -> str | Text:
    """An example with what is under the loss in green, where there is colour, instead of in ⟦…⟧."""
    from rich.text import Text

    prompt, bracket, completion = example.partition("⟦")
    if not (color and bracket):
        return example
    return Text.assemble((prompt, "dim"), (completion.removesuffix("⟧"), "green"))
