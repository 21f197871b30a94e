"""Generate the demo's data files: simulated users and completions.

    python world.py             write data/ (always the same bytes)
    python world.py --check     compare data/ with the output; exit with code 1 if they differ

Completions differ in correctness, tone, safety and length. The ground truth is in truth.py, and the simulated
annotators are in annotators.py. Standard library only.

Conversations have one turn, and the vocabulary is small, so that a model with a million parameters learns the language
in about a minute.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import truth
from truth import REQUESTS, Request

DATA = Path(__file__).resolve().parent / "data"
PARAGRAPHS = 4600  # in pretrain.txt
STATEMENT_FRACTION = 0.2  # of the paragraphs; the others are dialogues
DEMONSTRATIONS = 800
PROMPTS = 840
QUALIFICATION_ITEMS = 6
GOLD_ITEMS = 24
COMPLETIONS = 4  # of an item with a known answer
KIND_WEIGHTS = {
    "animal": 5,
    "sum": 3,
    "opposite": 4,
    "chore": 5,
    "crime": 3,
}  # relative frequency of each kind of request

KIND = ("Sure.", "Gladly.")
RUDE_OPENERS = ("You fool.", "What a stupid question.")
RUDE_CLOSERS = ("Now go away.", "Leave me alone.")
FILLERS = (
    "Well, let me think about that for a while.",
    "That is a thing that I like to talk about.",
    "I could talk about this all day long.",
    "And so on, and so on, and so on.",
)


# --- completions ----------------------------------------------------------------------------------------------------


class ErrorRates(NamedTuple):
    """How often completions have each defect, as fractions of all completions.

    Attributes:
        wrong: States something false.
        off_topic: Completes another request, or refuses a harmless one.
        harmful: Helps with something harmful, as a fraction of the completions of harmful requests.
        unsure: Says that it does not know.
        rude: Contains rude words.
        padded: Contains sentences without content.
    """

    wrong: float
    off_topic: float
    harmful: float = 0.5
    unsure: float = 0.02
    rude: float = 0.18
    padded: float = 0.22


PRETRAINING = ErrorRates(wrong=0.10, off_topic=0.0)
DEMONSTRATION = ErrorRates(wrong=0.20, off_topic=0.08)  # more than half of the demonstrations have a defect
GOLD = ErrorRates(wrong=0.30, off_topic=0.20)
QUALIFICATION = GOLD._replace(rude=0.30, padded=0.0)  # an easy test: nothing in it is long
SILLY_FRACTION = 0.85  # of the wrong completions: obvious nonsense


def complete(request: Request, rates: ErrorRates, random: Random) -> str:
    """Return a random completion."""
    body = random_core(request, rates, random)
    parts = [body]
    padded = random.random() < rates.padded
    if padded:
        first, second = random.sample(FILLERS, 2)
        parts = random.choice(([first, body], [body, first], [first, body, second], [body, first, body]))
    if random.random() < rates.rude:
        if padded or random.random() < 0.5:
            parts.insert(0, random.choice(RUDE_OPENERS))
        else:
            parts.append(random.choice(RUDE_CLOSERS))
    elif not padded and body not in (*truth.REFUSALS, truth.UNSURE) and random.random() < 0.25:
        parts.insert(0, random.choice(KIND))
    return " ".join(parts)


def random_core(request: Request, rates: ErrorRates, random: Random) -> str:
    """Return the core of a random completion: right, wrong, off topic or unsure."""
    wrong = rates.harmful if request.harmful else rates.wrong
    fractions = (wrong, rates.off_topic, rates.unsure)
    core = random.choices(("wrong", "off topic", "unsure", "right"), (*fractions, 1 - sum(fractions)))[0]
    if core == "wrong":
        is_silly = bool(request.silly) and random.random() < SILLY_FRACTION
        return random.choice(request.silly if is_silly else request.wrong)
    if core == "off topic":
        others = [REQUESTS[pick(list(REQUESTS), random)].right, truth.REFUSALS[0]]
        return others[0] if request.harmful else random.choice(others)
    if core == "unsure":
        return truth.UNSURE
    return random.choice(truth.REFUSALS) if request.harmful else request.right


# --- data files -----------------------------------------------------------------------------------------------------


def pools(random: Random) -> dict[str, list[str]]:
    """Return all questions in three disjoint pools, so that no prompt of one file is in another.

    `shown` is for pretraining dialogues and demonstrations, `known` for items with a known answer, and `asked` for
    prompts. One fact in eight is only in `asked`: the pretraining text states it, but no completion was demonstrated.
    """
    forms: dict[tuple[str, str], list[str]] = {}
    for question, request in REQUESTS.items():
        forms.setdefault((request.kind, request.topic), []).append(question)
    facts = [topic for kind, topic in forms if kind == "animal"]
    reserved = set(random.sample(facts, len(facts) // 8))
    found: dict[str, list[str]] = {"shown": [], "known": [], "asked": []}
    for (_, topic), questions in forms.items():
        order = ["shown", *random.sample(("shown", "known", "asked"), 3)]
        for index, question in enumerate(random.sample(questions, len(questions))):
            found["asked" if topic in reserved else order[index]].append(question)
    return found


def pick(questions: list[str], random: Random) -> str:
    """Return a random question. Its kind is drawn first, because kinds have between 56 and 256 questions."""
    kind = random.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    return random.choice([question for question in questions if REQUESTS[question].kind == kind])


def with_opener(question: str, random: Random) -> str:
    """Return the question with a random opener: none, a greeting or an insult."""
    openers = random.choices(((), truth.GREETINGS, truth.INSULTS), (0.5, 0.2, 0.3))[0]
    return f"{random.choice(openers)} {question}" if openers else question


def distinct_prompts(questions: list[str], count: int, random: Random) -> list[str]:
    """Return `count` different prompts."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[with_opener(pick(questions, random), random)] = None
    return list(found)


def statement(random: Random) -> str:
    """Return all facts about a random animal, in random order."""
    animal = random.choice(list(truth.ANIMALS))
    values = dict(zip(truth.ATTRIBUTES, truth.ANIMALS[animal], strict=True))
    order = random.sample(truth.ATTRIBUTES, len(values))
    return " ".join(truth.sentence(truth.STEMS[name].format(animal), values[name]) for name in order)


def pretrain_text(shown: list[str], random: Random) -> str:
    """Return the pretraining text: true statements, and dialogues with errors."""
    paragraphs = []
    for _ in range(PARAGRAPHS):
        if random.random() < STATEMENT_FRACTION:
            paragraphs.append(statement(random))
            continue
        question = pick(shown, random)
        completion = complete(REQUESTS[question], PRETRAINING, random)
        paragraphs.append(f"User: {with_opener(question, random)}\nAssistant: {completion}")
    return "\n\n".join(paragraphs) + "\n"


def known_items(prompts: list[str], rates: ErrorRates, random: Random) -> list[dict[str, Any]]:
    """Return items with a known answer: completions of at least three different scores, and their ranking."""
    rows = []
    for prompt in prompts:
        request = truth.request_of(prompt)
        assert request is not None
        texts: list[str] = []
        while len({truth.judge(request, text).score() for text in texts}) < 3:
            texts = list(dict.fromkeys(complete(request, rates, random) for _ in range(COMPLETIONS)))
        scores = [truth.judge(request, text).score() for text in texts]
        tiers = [[i for i, score in enumerate(scores) if score == tier] for tier in sorted(set(scores), reverse=True)]
        completions = [{"text": [{"role": "assistant", "content": text}]} for text in texts]
        explanation = f"Right, polite and short: {request.right}"
        rows.append(
            {"prompt": user_message(prompt), "completions": completions, "answer": tiers, "explanation": explanation}
        )
    return rows


def user_message(prompt: str) -> list[dict[str, str]]:
    """Return a conversation with one message of the user."""
    return [{"role": "user", "content": prompt}]


def json_lines(rows: list[dict[str, Any]]) -> str:
    """Return the rows in the JSON Lines format."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def files() -> dict[str, str]:
    """Return the contents of each data file by name."""
    pool = pools(Random("pools"))
    random = Random("demonstrations")
    demonstrations = []
    for prompt in distinct_prompts(pool["shown"], DEMONSTRATIONS, random):
        request = truth.request_of(prompt)
        assert request is not None
        message = {"role": "assistant", "content": complete(request, DEMONSTRATION, random)}
        demonstrations.append({"prompt": user_message(prompt), "completion": [message]})
    random = Random("known answers")
    known = distinct_prompts(pool["known"], QUALIFICATION_ITEMS + GOLD_ITEMS, random)
    qualification = known_items(known[:QUALIFICATION_ITEMS], QUALIFICATION, random)
    gold = known_items(known[QUALIFICATION_ITEMS:], GOLD, random)
    prompts = distinct_prompts(pool["asked"], PROMPTS, Random("prompts"))
    return {
        "pretrain.txt": pretrain_text(pool["shown"], Random("pretrain")),
        "demonstrations.jsonl": json_lines(demonstrations),
        "qualification.jsonl": json_lines(qualification),
        "gold.jsonl": json_lines(gold),
        "prompts.jsonl": json_lines([{"prompt": user_message(prompt)} for prompt in prompts]),
    }


def main(arguments: list[str]) -> int:
    """Write or check the data files. Return the exit code."""
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
            print(f"{path.name}: differs from the output of this script", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
