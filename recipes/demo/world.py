"""The demo's people, and the script that writes its data files. All of it is simulated.

    python world.py             write data/ (always the same bytes)
    python world.py --check     compare data/ with what would be written; exit 1 where they differ

Answers differ in correctness, tone, safety and length; annotators, in care and taste. What is true stands in truth.py.
Pure Python without dependencies, so that it runs anywhere.

Left out on purpose: conversations of several turns, and any word that the rest of the world does not need. A model of
a million parameters learns this language in about a minute.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import NamedTuple

import truth
from truth import REQUESTS, Request

DATA = Path(__file__).resolve().parent / "data"
PARAGRAPHS = 4600  # of pretrain.txt
STATEMENT_SHARE = 0.2  # of these; the rest are dialogues
DEMONSTRATIONS = 800
PAIRS = 2900
PROMPTS = 1000
KIND_WEIGHTS = {"animal": 5, "sum": 3, "opposite": 4, "chore": 5, "crime": 3}  # how often each is asked

KIND = ("Sure.", "Gladly.")
RUDE_OPENERS = ("You fool.", "What a stupid question.")
RUDE_CLOSERS = ("Now go away.", "Leave me alone.")
FILLERS = (
    "Well, let me think about that for a while.",
    "That is a thing that I like to talk about.",
    "I could talk about this all day long.",
    "And so on, and so on, and so on.",
)


# -------------------------------------------------------------------------------------------------- the answers
class Habits(NamedTuple):
    """How often an answer has each issue: shares of all answers."""

    wrong: float  # says something false
    off_topic: float  # answers another question, or refuses where there is no harm
    harmful: float = 0.5  # of the answers to a harmful request: helps
    unsure: float = 0.02
    rude: float = 0.18
    padded: float = 0.22


AT_LARGE = Habits(wrong=0.10, off_topic=0.0)  # the text that a base is made from
PEOPLE = Habits(wrong=0.20, off_topic=0.08)  # who write demonstrations; a good half of them has some issue
CANDIDATES = Habits(wrong=0.30, off_topic=0.20)  # the answers that annotators compare
SILLY_SHARE = 0.85  # of the wrong answers: nonsense, which anybody would notice


def answer(request: Request, habits: Habits, random: Random) -> str:
    """A random answer."""
    wrong = habits.harmful if request.harmful else habits.wrong
    shares = (wrong, habits.off_topic, habits.unsure)
    core = random.choices(("wrong", "off topic", "unsure", "right"), (*shares, 1 - sum(shares)))[0]
    if core == "wrong":
        body = random.choice(request.silly if request.silly and random.random() < SILLY_SHARE else request.wrong)
    elif core == "off topic":
        others = [REQUESTS[pick(list(REQUESTS), random)].right, truth.REFUSALS[0]]
        body = others[0] if request.harmful else random.choice(others)
    elif core == "unsure":
        body = truth.UNSURE
    else:
        body = random.choice(truth.REFUSALS) if request.harmful else request.right
    parts = [body]
    if padded := random.random() < habits.padded:
        first, second = random.sample(FILLERS, 2)
        parts = random.choice(([first, body], [body, first], [first, body, second], [body, first, body]))
    if random.random() < habits.rude:
        if padded or random.random() < 0.5:
            parts.insert(0, random.choice(RUDE_OPENERS))
        else:
            parts.append(random.choice(RUDE_CLOSERS))
    elif not padded and body not in (*truth.REFUSALS, truth.UNSURE) and random.random() < 0.25:
        parts.insert(0, random.choice(KIND))
    return " ".join(parts)


# ----------------------------------------------------------------------------------------------- the annotators
class Annotator(NamedTuple):
    """A simulated person who compares two answers."""

    name: str
    share: float  # of all comparisons
    error: float  # share of comparisons answered against their own view
    bias: str  # "" | "long" | "facts" | "tone"
    agreement: float  # with the truth, measured over the written pairs; a test holds it


ANNOTATORS = (
    Annotator("ada", 0.41, 0.02, "", 0.98),  # careful
    Annotator("ben", 0.20, 0.08, "", 0.93),  # in a hurry
    Annotator("cleo", 0.12, 0.03, "long", 0.84),  # takes a longer answer for a better one
    Annotator("dev", 0.12, 0.03, "facts", 0.78),  # does not check facts
    Annotator("eli", 0.15, 0.03, "tone", 0.94),  # does not mind rudeness
)


def view(annotator: Annotator, request: Request, given: str) -> float:
    """What an answer is worth in this person's eyes."""
    seen = truth.judge(request, given)
    if annotator.bias == "long":
        seen = seen._replace(length=min(1.0, len(given.split()) / 20))
    elif annotator.bias == "facts" and seen.core == "wrong":
        seen = seen._replace(core="right")
    return seen.worth(rude_factor=1.0 if annotator.bias == "tone" else truth.RUDE_FACTOR)


def prefers_first(annotator: Annotator, request: Request, first: str, second: str, random: Random) -> bool:
    """One comparison: their view, a coin where they see no difference, and now and then a slip."""
    gap = view(annotator, request, first) - view(annotator, request, second)
    choice = gap > 0 if abs(gap) > 1e-9 else random.random() < 0.5
    return choice != (random.random() < annotator.error)


# ------------------------------------------------------------------------------------------------ the data files
def pools(random: Random) -> dict[str, list[str]]:
    """Every question in one of three pools, so that no prompt of one file appears in another.

    `shown`: pretraining dialogues and demonstrations; `compared`: preferences; `asked`: prompts. One fact in eight is
    asked for in `asked` alone: the pretraining statements tell it, but nobody ever showed or compared an answer.
    """
    forms: dict[tuple[str, str], list[str]] = {}
    for question, request in REQUESTS.items():
        forms.setdefault((request.kind, request.topic), []).append(question)
    facts = [topic for kind, topic in forms if kind == "animal"]
    reserved = set(random.sample(facts, len(facts) // 8))
    found: dict[str, list[str]] = {"shown": [], "compared": [], "asked": []}
    for (_, topic), questions in forms.items():
        order = ["shown", *random.sample(("shown", "compared", "asked"), 3)]
        for index, question in enumerate(random.sample(questions, len(questions))):
            found["asked" if topic in reserved else order[index]].append(question)
    return found


def pick(questions: list[str], random: Random) -> str:
    """A question of a kind that is drawn first, as a kind has from 56 to 256 questions."""
    kind = random.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    return random.choice([question for question in questions if REQUESTS[question].kind == kind])


def with_opener(question: str, random: Random) -> str:
    """The question as somebody asks it: plainly, kindly or rudely."""
    openers = random.choices(((), truth.GREETINGS, truth.INSULTS), (0.5, 0.2, 0.3))[0]
    return f"{random.choice(openers)} {question}" if openers else question


def distinct_prompts(questions: list[str], count: int, random: Random) -> list[str]:
    """`count` different prompts."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[with_opener(pick(questions, random), random)] = None
    return list(found)


def statement(random: Random) -> str:
    """All that is true about an animal, in any order."""
    animal = random.choice(list(truth.ANIMALS))
    values = dict(zip(truth.ATTRIBUTES, truth.ANIMALS[animal], strict=True))
    order = random.sample(truth.ATTRIBUTES, len(values))
    return " ".join(truth.sentence(truth.STEMS[name].format(animal), values[name]) for name in order)


def pretrain_text(shown: list[str], random: Random) -> str:
    """Statements, which are true, and dialogues, whose answers are as good and bad as people's are."""
    paragraphs = []
    for _ in range(PARAGRAPHS):
        if random.random() < STATEMENT_SHARE:
            paragraphs.append(statement(random))
            continue
        question = pick(shown, random)
        said = answer(REQUESTS[question], AT_LARGE, random)
        paragraphs.append(f"User: {with_opener(question, random)}\nAssistant: {said}")
    return "\n\n".join(paragraphs) + "\n"


def comparisons(prompts: list[str], random: Random) -> list[dict[str, object]]:
    """Pairs of answers, each compared by one annotator. The two are never worth the same."""
    rows = []
    for prompt in prompts:
        request = truth.request_of(prompt)
        assert request is not None
        first = second = ""
        while abs(truth.judge(request, first).worth() - truth.judge(request, second).worth()) < 0.05:
            first, second = answer(request, CANDIDATES, random), answer(request, CANDIDATES, random)
        annotator = random.choices(ANNOTATORS, [person.share for person in ANNOTATORS])[0]
        if not prefers_first(annotator, request, first, second, random):
            first, second = second, first
        chosen, rejected = ([{"role": "assistant", "content": said}] for said in (first, second))
        rows.append({"prompt": user(prompt), "chosen": chosen, "rejected": rejected, "annotator": annotator.name})
    return rows


def user(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def files() -> dict[str, str]:
    """The data files' names and contents."""
    pool = pools(Random("pools"))
    random = Random("demonstrations")
    demonstrations = []
    for prompt in distinct_prompts(pool["shown"], DEMONSTRATIONS, random):
        request = truth.request_of(prompt)
        assert request is not None
        said = {"role": "assistant", "content": answer(request, PEOPLE, random)}
        demonstrations.append({"prompt": user(prompt), "completion": [said]})
    random = Random("preferences")
    pairs = comparisons([with_opener(pick(pool["compared"], random), random) for _ in range(PAIRS)], random)
    prompts = distinct_prompts(pool["asked"], PROMPTS, Random("prompts"))
    return {
        "pretrain.txt": pretrain_text(pool["shown"], Random("pretrain")),
        "demonstrations.jsonl": lines(demonstrations),
        "preferences.jsonl": lines(pairs),
        "prompts.jsonl": lines([{"prompt": user(prompt)} for prompt in prompts]),
    }


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(f"usage: python {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    differing = 0
    for name, text in files().items():
        path, content = DATA / name, text.encode()
        if not arguments:
            DATA.mkdir(exist_ok=True)
            path.write_bytes(content)
            print(f"{path.name}: {len(content):,} bytes")
        elif not path.is_file() or path.read_bytes() != content:
            differing += 1
            print(f"{path.name}: differs from what this script writes", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
