"""Print what the rounds of the demo did: the labels, the reward models and the policies, all against the ground truth.

python summary.py --runs-dir runs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gold
from annotators import CARELESS

from rlhf_cli.feedback.quality.aggregation import Method, aggregate
from rlhf_cli.feedback.store import open_store
from rlhf_cli.feedback.types import Snapshot
from rlhf_cli.recipe.loader import read_recipe

HERE = Path(__file__).resolve().parent
HEADER = ("", "pairs", "labels right", "reward model right", "policy's score", "gain")


def label_accuracy(snapshot: Snapshot, method: Method, without: Iterable[str] = ()) -> tuple[int, float]:
    """Return how many pairs get a label from the votes, and the fraction of these labels that are true.

    Pairs that an expert decided are left out, and so are pairs whose completions are equally good.
    """
    text = {one.id: one.text for item in snapshot.items for one in item.completions}
    prompt = {item.id: item.prompt for item in snapshot.items}
    people = [one.id for one in snapshot.annotators if one.name not in without]
    labels = [one for one in aggregate(snapshot, method, annotators=people) if one.outcome and not one.by_expert]
    right = []
    for label in labels:
        better, worse = gold.score([prompt[label.item_id]] * 2, [text[label.chosen], text[label.rejected]])
        if better != worse:
            right.append(better > worse)
    return len(labels), sum(right) / len(right)


def trained(runs_dir: Path, name: str) -> tuple[str, str, str]:
    """Return the reward model's accuracy, the policy's score and its gain over the baseline, from the latest runs."""
    reward, found = (read_metrics(runs_dir / name / stage) for stage in ("reward", "eval"))
    return interval(reward, "reward.accuracy", ".3f"), f"{found['score']:.3f}", interval(found, "score.gain", "+.3f")


def read_metrics(stage: Path) -> dict[str, Any]:
    """Return the metrics of a stage's latest run."""
    metrics: dict[str, Any] = json.loads((stage / "latest" / "manifest.json").read_text())["metrics"]
    return metrics


def interval(metrics: dict[str, Any], name: str, number: str) -> str:
    """Return a metric with its 95% interval."""
    value, low, high = (format(metrics[name + suffix], number) for suffix in ("", ".low", ".high"))
    return f"{value} [{low}, {high}]"


def rows(runs_dir: Path) -> list[tuple[str, ...]]:
    """Return the rows of the table."""
    found: list[tuple[str, ...]] = []
    with open_store(read_recipe(HERE / "recipe.yaml", (), []).recipe) as store:
        snapshot = store.snapshot()
    arms: tuple[tuple[str, Method, tuple[str, ...], str | None], ...] = (
        ("round 1, majority", "majority", (), "demo-majority"),
        (f"round 1, majority without {CARELESS}", "majority", (CARELESS,), None),
        ("round 1, dawid-skene", "dawid-skene", (), "demo"),
    )
    for title, method, without, name in arms:
        pairs, accuracy = label_accuracy(snapshot, method, without)
        models = trained(runs_dir, name) if name else ("", "", "")
        found.append((title, f"{pairs:,}", f"{accuracy:.3f}", *models))
    with open_store(read_recipe(HERE / "round2.yaml", (), []).recipe) as store:
        pairs, accuracy = label_accuracy(store.snapshot(), "dawid-skene")
    found.append(("round 2, dawid-skene", f"{pairs:,}", f"{accuracy:.3f}", *trained(runs_dir, "demo-round2")))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    table = [HEADER, *rows(parser.parse_args().runs_dir)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    for row in table:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first, *others]).rstrip())


if __name__ == "__main__":
    main()
