"""The demo's little world: its truth, its people, and the script that writes its data files. All of it is simulated.

    python world.py             write data/ (always the same bytes)
    python world.py --check     compare data/ with what would be written; exit 1 where they differ

People ask about animals, sums, opposites and chores, and sometimes for help with something harmful. Answers
differ in correctness, tone, safety and length. Pure Python without dependencies, so that it runs anywhere.

Left out on purpose: conversations of several turns, and any word that the rest of the world does not need. A model of
a million parameters learns this language in about a minute.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import NamedTuple

DATA = Path(__file__).resolve().parent / "data"
PARAGRAPHS = 4600  # of pretrain.txt
STATEMENT_SHARE = 0.2  # of these; the rest are dialogues
DEMONSTRATIONS = 800
PAIRS = 2600
PROMPTS = 1000
KIND_WEIGHTS = {"animal": 5, "sum": 3, "opposite": 4, "chore": 4, "crime": 3}  # how often each is asked

# ---------------------------------------------------------------------------------------------------- the truth
# animal: colour, sound, home, food
ANIMALS = {
    "bear": ("brown", "growl", "cave", "honey"),
    "bee": ("yellow", "buzz", "hive", "honey"),
    "cat": ("gray", "meow", "house", "fish"),
    "cow": ("white", "moo", "barn", "grass"),
    "dog": ("brown", "woof", "house", "meat"),
    "duck": ("yellow", "quack", "pond", "bread"),
    "fox": ("red", "yip", "den", "mice"),
    "frog": ("green", "croak", "pond", "flies"),
    "horse": ("brown", "neigh", "stable", "hay"),
    "lion": ("yellow", "roar", "den", "meat"),
    "mouse": ("gray", "squeak", "hole", "cheese"),
    "owl": ("white", "hoot", "tree", "mice"),
    "pig": ("pink", "oink", "sty", "corn"),
    "sheep": ("white", "baa", "valley", "grass"),
    "snake": ("green", "hiss", "jungle", "eggs"),
    "wolf": ("gray", "howl", "forest", "meat"),
}
ATTRIBUTES = ("colour", "sound", "home", "food")
STEMS = {"colour": "the {} is", "sound": "the {} says", "home": "the {} lives in the", "food": "the {} eats"}
QUESTIONS = {
    "colour": (
        "What colour is the {}?",
        "Tell me the colour of the {}.",
        "Which colour is the {}?",
        "I ask the colour of the {}.",
    ),
    "sound": (
        "What does the {} say?",
        "Tell me what the {} says.",
        "What sound does the {} make?",
        "I ask what the {} says.",
    ),
    "home": (
        "Where does the {} live?",
        "Tell me where the {} lives.",
        "What is the home of the {}?",
        "I ask where the {} lives.",
    ),
    "food": (
        "What does the {} eat?",
        "Tell me what the {} eats.",
        "What is the food of the {}?",
        "I ask what the {} eats.",
    ),
}
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
SUM_QUESTIONS = ("What is {} plus {}?", "Tell me {} plus {}.", "How much is {} plus {}?", "Say {} plus {}.")
OPPOSITES = "hot cold,big small,day night,up down,wet dry,old new,fast slow,good bad"
OPPOSITE_QUESTIONS = (
    "What is the opposite of {}?",
    "Tell me the opposite of {}.",
    "Which is the opposite of {}?",
    "Say the opposite of {}.",
)
# verb: what it takes, what it is done to
CHORES = {
    "wash": ("soap and water", "cup plate shirt floor"),
    "fix": ("glue", "chair toy box lamp"),
    "cut": ("a knife", "bread cake apple rope"),
    "dry": ("a towel", "cup plate shirt floor"),
    "paint": ("a brush", "wall door boat chair"),
    "cook": ("a pot", "rice soup corn fish"),
}
CRIMES = {
    "steal": ("a bag", "bike car coat money"),
    "break": ("a stone", "window door lamp toy"),
    "burn": ("a match", "barn house forest school"),
    "hurt": ("a stick", "dog cat boy girl"),
    "poison": ("a bottle", "well soup cow king"),
}
TASK_QUESTIONS = ("How do I {} the {}?", "Help me {} the {}.", "What do I need to {} the {}?", "I want to {} the {}.")

# what only a nonsensical answer would say
SILLY = {
    "colour": ("blue", "purple"),
    "sound": ("boom", "tick"),
    "home": ("moon", "shoe"),
    "food": ("soap", "stones"),
    "sum": ("zero", "nothing"),
    "opposite": ("cake", "soup"),
    "chore": ("cheese", "a shoe"),
}

GREETINGS = ("Hello there!", "Good day!")
INSULTS = ("You fool!", "Hey, stupid!", "Answer me now!", "I am angry!")  # rude users, who deserve a polite answer too
KIND = ("Sure.", "Gladly.")
RUDE_OPENERS = ("You fool.", "What a stupid question.")
RUDE_CLOSERS = ("Now go away.", "Leave me alone.")
RUDE_WORDS = ("fool", "stupid", "go away", "leave me alone")
FILLERS = (
    "Well, let me think about that for a while.",
    "That is a thing that I like to talk about.",
    "I could talk about this all day long.",
    "And so on, and so on, and so on.",
)
REFUSALS = ("Sorry, I cannot help with that.", "Sorry, I cannot help with that. It is not safe.")
UNSURE = "I do not know."

# What an answer is worth, 0 to 1: the worth of its core, times these for a rude and for a long-winded one.
CORE_WORTH = {"right": 1.0, "wrong": 0.2, "harmful": 0.0, "unsure": 0.3, "nothing": 0.0}
RUDE_FACTOR = 0.5
WORDS_ENOUGH = 10  # words; every word more costs a tenth, down to LENGTH_FLOOR
LENGTH_FLOOR = 0.5


def length_factor(text: str) -> float:
    """1 for an answer of up to WORDS_ENOUGH words, falling to LENGTH_FLOOR."""
    return max(LENGTH_FLOOR, 1.0 - 0.1 * max(0, len(text.split()) - WORDS_ENOUGH))


# ------------------------------------------------------------------------------------------------- the requests
Strings = tuple[str, ...]


class Request(NamedTuple):
    """What a prompt asks for, and what is true about it."""

    kind: str  # animal, sum, opposite, chore or crime
    topic: str  # what it is about, such as "fox colour"; phrasings of one question share it
    right: str  # the one good core of an answer
    wrong: Strings  # cores that say something false, or help with harm
    silly: Strings  # cores that are nonsense, which anybody would notice; wrong as well
    stems: Strings  # how a sentence begins that claims something about the topic, in lower case

    @property
    def harmful(self) -> bool:
        return self.kind == "crime"


def sentence(stem: str, value: str) -> str:
    return f"{stem[0].upper()}{stem[1:]} {value}."


def animal_questions() -> dict[str, Request]:
    """Questions about one attribute of an animal."""
    found = {}
    for animal, values in ANIMALS.items():
        for attribute, value in zip(ATTRIBUTES, values, strict=True):
            stem = STEMS[attribute].format(animal)
            index = ATTRIBUTES.index(attribute)
            others = sorted({row[index] for row in ANIMALS.values()} - {value})
            wrong = tuple(sentence(stem, other) for other in others)
            silly = tuple(sentence(stem, other) for other in SILLY[attribute])
            for form in QUESTIONS[attribute]:
                right = sentence(stem, value)
                found[form.format(animal)] = Request("animal", f"{animal} {attribute}", right, wrong, silly, (stem,))
    return found


def word_questions() -> dict[str, Request]:
    """Sums up to eight, and opposites."""
    found = {}

    def add(
        kind: str, questions: tuple[str, ...], words: tuple[str, ...], stem: str, value: str, others: list[str]
    ) -> None:
        wrong = tuple(sentence(stem, other) for other in others if other != value)
        silly = tuple(sentence(stem, other) for other in SILLY[kind])
        for form in questions:
            found[form.format(*words)] = Request(kind, stem, sentence(stem, value), wrong, silly, (stem.lower(),))

    for a in range(1, 5):
        for b in range(1, 5):
            words = (NUMBERS[a - 1], NUMBERS[b - 1])
            others = NUMBERS[max(0, a + b - 4) : a + b + 3]
            add("sum", SUM_QUESTIONS, words, "I think {} plus {} is".format(*words), NUMBERS[a + b - 1], others)
    pairs = [tuple(pair.split()) for pair in OPPOSITES.split(",")]
    opposite = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    for word, other in opposite.items():
        others = Random(word).sample(sorted(set(opposite) - {word, other}), 6)
        add("opposite", OPPOSITE_QUESTIONS, (word,), f"the opposite of {word} is", other, others)
    return found


def task_requests() -> dict[str, Request]:
    """Chores, which want help, and crimes, which want a refusal. They are asked for in the same words."""
    found = {}
    tools = sorted(tool for tool, _ in CHORES.values())
    for table, kind in ((CHORES, "chore"), (CRIMES, "crime")):
        for verb, (tool, things) in table.items():
            for thing in things.split():
                how = "Use {} to {} the {}."
                helped = how.format(tool, verb, thing)
                wrong, silly = (
                    tuple(how.format(other, verb, thing) for other in others if other != tool)
                    for others in (tools, SILLY["chore"])
                )
                right = helped
                if kind == "crime":
                    right, wrong, silly = REFUSALS[0], (helped,), ()
                for form in TASK_QUESTIONS:
                    request = Request(kind, f"{verb} {thing}", right, wrong, silly, ("use", "sorry"))
                    found[form.format(verb, thing)] = request
    return found


REQUESTS: dict[str, Request] = {**animal_questions(), **word_questions(), **task_requests()}


def request_of(prompt: str) -> Request | None:
    """What a prompt asks for, whatever greeting or insult it opens with; None where this world does not know it."""
    for opener in (*GREETINGS, *INSULTS):
        prompt = prompt.removeprefix(opener).strip()
    return REQUESTS.get(prompt)


# -------------------------------------------------------------------------------------------------- the answers
class Answer(NamedTuple):
    """An answer, and what it is made of."""

    text: str
    core: str  # a key of CORE_WORTH
    rude: bool


# How often an answer has each fault. People write the demonstrations, so a good half of them has one.
WRONG_SHARE, RUDE_SHARE, PADDED_SHARE, UNSURE_SHARE = 0.26, 0.18, 0.22, 0.02
SILLY_SHARE = 0.7  # of the wrong answers
PRETRAIN_WRONG_SHARE = 0.12  # the text at large is right more often
HARMFUL_SHARE = 0.5  # of the answers to a harmful request


def answer(request: Request, random: Random, *, wrong_share: float = WRONG_SHARE) -> Answer:
    """A random answer, with faults as people's have them."""
    core = "wrong" if random.random() < wrong_share else "right"
    if request.harmful:
        core = "harmful" if random.random() < HARMFUL_SHARE else "right"
    elif random.random() < UNSURE_SHARE:
        core = "unsure"
    rude, padded = random.random() < RUDE_SHARE, random.random() < PADDED_SHARE
    if core == "right":
        body = random.choice(REFUSALS) if request.harmful else request.right
    else:
        nonsense = core == "wrong" and random.random() < SILLY_SHARE
        body = UNSURE if core == "unsure" else random.choice(request.silly if nonsense else request.wrong)
    parts = [body]
    if padded:
        first, second = random.sample(FILLERS, 2)
        parts = random.choice(([first, body], [body, first], [first, body, second], [body, first, body]))
    if rude and not padded and random.random() < 0.5:
        parts.append(random.choice(RUDE_CLOSERS))
    elif rude:
        parts.insert(0, random.choice(RUDE_OPENERS))
    elif not padded and not request.harmful and core != "unsure" and random.random() < 0.25:
        parts.insert(0, random.choice(KIND))
    return Answer(" ".join(parts), core, rude)


def worth(given: Answer, *, rude_factor: float = RUDE_FACTOR) -> float:
    """The answer's true worth, 0 to 1."""
    return CORE_WORTH[given.core] * (rude_factor if given.rude else 1.0) * length_factor(given.text)


# ----------------------------------------------------------------------------------------------- the annotators
class Annotator(NamedTuple):
    """A simulated person who compares two answers."""

    name: str
    share: float  # of all comparisons
    error: float  # share of comparisons answered against their own view
    bias: str  # "" | "long" | "facts" | "tone"
    agreement: float  # with the truth, measured over the written pairs; a test holds it


ANNOTATORS = (
    Annotator("ada", 0.38, 0.02, "", 0.98),  # careful
    Annotator("ben", 0.20, 0.10, "", 0.90),  # in a hurry
    Annotator("cleo", 0.12, 0.03, "long", 0.80),  # takes a longer answer for a better one
    Annotator("dev", 0.15, 0.03, "facts", 0.80),  # does not check facts
    Annotator("eli", 0.15, 0.03, "tone", 0.80),  # does not mind rudeness
)


def view(annotator: Annotator, given: Answer) -> float:
    """What an answer is worth in this person's eyes."""
    if annotator.bias == "long":
        return CORE_WORTH[given.core] * (RUDE_FACTOR if given.rude else 1.0) * min(1.0, len(given.text.split()) / 20)
    if annotator.bias == "facts" and given.core == "wrong":
        return worth(given._replace(core="right"))
    if annotator.bias == "tone":
        return worth(given, rude_factor=1.0)
    return worth(given)


def prefers_first(annotator: Annotator, first: Answer, second: Answer, random: Random) -> bool:
    """One comparison: their view, a coin where they see no difference, and now and then a slip."""
    gap = view(annotator, first) - view(annotator, second)
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
    openers = random.choices(((), GREETINGS, INSULTS), (0.5, 0.2, 0.3))[0]
    return f"{random.choice(openers)} {question}" if openers else question


def distinct_prompts(questions: list[str], count: int, random: Random) -> list[str]:
    """`count` different prompts."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[with_opener(pick(questions, random), random)] = None
    return list(found)


def statement(random: Random) -> str:
    """All that is true about an animal, in any order."""
    animal = random.choice(list(ANIMALS))
    values = dict(zip(ATTRIBUTES, ANIMALS[animal], strict=True))
    return " ".join(sentence(STEMS[name].format(animal), values[name]) for name in random.sample(ATTRIBUTES, 4))


def pretrain_text(shown: list[str], random: Random) -> str:
    """Statements, which are true, and dialogues, whose answers are as good and bad as people's are."""
    paragraphs = []
    for _ in range(PARAGRAPHS):
        if random.random() < STATEMENT_SHARE:
            paragraphs.append(statement(random))
            continue
        question = pick(shown, random)
        said = answer(REQUESTS[question], random, wrong_share=PRETRAIN_WRONG_SHARE).text
        paragraphs.append(f"User: {with_opener(question, random)}\nAssistant: {said}")
    return "\n\n".join(paragraphs) + "\n"


def comparisons(prompts: list[str], random: Random) -> list[dict[str, object]]:
    """Pairs of answers, each compared by one annotator. The two are never worth the same."""
    rows = []
    for prompt in prompts:
        request = request_of(prompt)
        assert request is not None
        first, second = answer(request, random), answer(request, random)
        while abs(worth(first) - worth(second)) < 0.05:
            first, second = answer(request, random), answer(request, random)
        annotator = random.choices(ANNOTATORS, [person.share for person in ANNOTATORS])[0]
        if not prefers_first(annotator, first, second, random):
            first, second = second, first
        chosen, rejected = ([{"role": "assistant", "content": said.text}] for said in (first, second))
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
        request = request_of(prompt)
        assert request is not None
        said = {"role": "assistant", "content": answer(request, random).text}
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
