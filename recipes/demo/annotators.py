"""Simulate the annotators of a round: they answer through the store, as people do on the page of `rlhf annotate serve`.

    python annotators.py -r recipe.yaml     let everybody judge until no item is open, then let the expert decide

They differ in care and in what they like; the ground truth is in truth.py. The same items give the same answers. If no
item is open, nothing happens.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import NamedTuple

import truth

from rlhf_cli.data.splits import prompt_hash, prompt_key
from rlhf_cli.feedback.store import Assignment, Store, open_store
from rlhf_cli.feedback.types import Answer, Item, Tiers
from rlhf_cli.recipe.loader import read_recipe


class Person(NamedTuple):
    """A simulated annotator.

    Attributes:
        name: Their name.
        pace: How many items they judge while the slowest ones judge one.
        error: How often they confuse two neighbors of their ranking, as a fraction.
        bias: "", or "long" (prefers longer completions), "facts" (does not check facts), "tone" (ignores rudeness),
            "careless" (ranks the completions in the order in which they are shown, once the test is passed), "guess"
            (the same, from the beginning).
    """

    name: str
    pace: int
    error: float
    bias: str


PEOPLE = (
    Person("ada", 2, 0.02, ""),  # careful
    Person("ben", 2, 0.08, ""),  # makes slips
    Person("cleo", 4, 0.03, "long"),  # mistakes longer for better
    Person("dev", 1, 0.03, "facts"),  # does not check facts
    Person("eli", 1, 0.03, "tone"),  # does not mind rudeness
    Person("finn", 6, 0.0, "careless"),  # presses 1 2 3 4, and judges more items than anybody else
    Person("gus", 6, 0.0, "guess"),  # would do the same, but does not pass the test
)
CARELESS = "finn"
EXPERT = "olga"  # looks everything up, and decides the items whose pairs are held out
SECONDS_PER_ITEM = 20.0  # of a person of pace 1
STEP = 0.05  # of scores; completions whose scores round to the same multiple are tied


def perceived_score(bias: str, request: truth.Request | None, completion: str) -> float:
    """Return the score that a person gives to a completion, without random errors."""
    judgment = truth.judge(request, completion)
    if bias == "long":
        judgment = judgment._replace(length=min(1.0, len(completion.split()) / 20))
    elif bias == "facts" and judgment.core == "wrong":
        judgment = judgment._replace(core="right")
    return judgment.score(rude_factor=1.0 if bias == "tone" else truth.RUDE_FACTOR)


def rank(item: Item, bias: str = "") -> Tiers:
    """Return the completions of an item from best to worst, with ties, as somebody with this bias sees them."""
    request = truth.request_of(content(item.prompt))
    tiers: defaultdict[int, list[int]] = defaultdict(list)
    for completion in item.completions:
        tiers[round(perceived_score(bias, request, content(completion.text)) / STEP)].append(completion.id)
    return tuple(tuple(tiers[score]) for score in sorted(tiers, reverse=True))


def content(text: object) -> str:
    """Return the content of the last message, or the text itself."""
    return text if isinstance(text, str) else text[-1]["content"]  # type: ignore[index]


def answer(person: Person, assignment: Assignment) -> Answer:
    """Return a person's answer to an assignment."""
    random = Random(f"{person.name}|{assignment.item.prompt_key}|{assignment.order}")
    seconds = SECONDS_PER_ITEM / person.pace * random.uniform(0.7, 1.5)
    if person.bias == "guess" or (person.bias == "careless" and not assignment.is_qualification):
        return Answer(tuple((number,) for number in assignment.order), seconds=seconds)
    tiers = list(rank(assignment.item, "" if person.bias == "careless" else person.bias))
    for index in range(len(tiers) - 1):
        if random.random() < person.error:
            tiers[index : index + 2] = reversed(tiers[index : index + 2])
    return Answer(tuple(tiers), seconds=seconds)


def judge_all(store: Store, people: list[Person]) -> None:
    """Let everybody judge in turns until nothing is left for anybody."""
    working = {person: store.redeem(store.add_annotator(person.name).token).annotator.id for person in people}
    while working:
        for person, number in list(working.items()):
            assignments = store.assign(number, person.pace)
            for assignment in assignments:
                store.submit(number, assignment.id, answer(person, assignment), key=f"{number}-{assignment.id}")
            if not assignments:
                del working[person]


def decide_held_out(store: Store, eval_fraction: float) -> int:
    """Let the expert decide the items of the held-out prompts. Return how many there are."""
    expert = store.add_annotator(EXPERT, role="expert").annotator
    items = [item for item in store.snapshot().items if item.kind == "item" and is_held_out(item, eval_fraction)]
    for item in items:
        store.decide(expert.id, item.id, rank(item), "looked up")
    return len(items)


def is_held_out(item: Item, fraction: float) -> bool:
    """Return whether an item's pairs are held out: by the hash of its prompt, as in every dataset."""
    return int.from_bytes(prompt_hash(prompt_key(item)), "big") < fraction * 2**64


def run_round(store: Store, people: list[Person]) -> str:
    """Let people judge until no item is open, then let the expert decide. Return a report."""
    if not store.status().open:
        return "up to date: no item is open"
    judge_all(store, people)
    decided = decide_held_out(store, store.settings.eval_fraction)
    status = store.status()
    lines = [f"{one.annotator.name:5} test {one.qualification:7} {one.judged:4} judged" for one in status.annotators]
    lines.append(f"{status.judgments:,} judgments of {status.items:,} items; {EXPERT} decided {decided:,} of the items")
    return "\n".join(lines)


def main() -> None:
    """Run a round on the store of a recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--recipe", type=Path, required=True)
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="an annotator not to invite")
    arguments = parser.parse_args()
    with open_store(read_recipe(arguments.recipe, (), []).recipe) as store:
        print(run_round(store, [person for person in PEOPLE if person.name not in arguments.without]))


if __name__ == "__main__":
    main()
