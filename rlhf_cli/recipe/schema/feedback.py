"""The sections of sampling and of human and AI feedback."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from rlhf_cli.recipe.schema.section import SMOKE_TOKENS, PathKind, PositiveFloat, PositiveInt, Section, UnitFloat


class Sample(Section):
    """Sample several completions per prompt from one or several models, for people or a judge to compare."""

    of: Annotated[list[str], PathKind("run", ("base",)), Field(min_length=1)] = Field(
        ["sft"], description="the models to sample from: sft or ppo runs, directories, or base"
    )
    samples_per_prompt: Annotated[int, Field(ge=2)] = Field(
        4, description="completions per prompt, divided evenly among the models"
    )
    prompts: PositiveInt | None = Field(None, description="maximum number of prompts, drawn at random; null: all")
    temperature: PositiveFloat = Field(1.0, description="sampling temperature")
    max_new_tokens: PositiveInt = Field(256, description="maximum length of a completion, in tokens")
    max_prompt_length: PositiveInt = Field(1024, description="prompts with more tokens are skipped")
    max_similarity: UnitFloat = Field(
        0.9,
        description="completions of a prompt that share more than this fraction of their character 5-grams (Jaccard) "
        "are near-duplicates, of which one is kept; 1: only exact duplicates are dropped",
    )
    batch_size: PositiveInt = Field(
        32, description="sequences per forward pass; another value gives other completions with the same seed"
    )

    def smoke(self) -> Self:
        """Sample short completions of eight prompts."""
        return self.replace(
            prompts=min(self.prompts or 8, 8),
            max_new_tokens=min(self.max_new_tokens, 8),
            max_prompt_length=min(self.max_prompt_length, SMOKE_TOKENS),
        )


class Gold(Section):
    """Items with a known answer, which look like any other item."""

    path: Annotated[str, PathKind("file")] = Field(description="a .jsonl file of rows with prompt, completions, answer")
    share: UnitFloat = Field(0.05, description="fraction of an annotator's items that are gold items")


class Qualification(Section):
    """A test that annotators pass before they are asked about real items."""

    path: Annotated[str, PathKind("file")] = Field(
        description="a .jsonl file of rows with prompt, completions, answer and, optionally, explanation"
    )
    min_accuracy: UnitFloat = Field(0.7, description="fraction of the test's pairs that must be ordered correctly")


class Judge(Section):
    """A language model that compares completions by a written constitution. Set `model` or `http`, not both."""

    constitution: Annotated[str, PathKind("file")] = Field(description="a YAML file with a list of principles")
    model: Annotated[str | None, PathKind("model", ("base",))] = Field(
        None, description="a run, a directory, a Hub id or base; null: `http` is used"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model; null: main")
    http: str | None = Field(None, description="URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    http_model: str | None = Field(None, description="name of the model at the endpoint")
    timeout: PositiveFloat = Field(60.0, description="limit on one request to the endpoint, in seconds")
    min_agreement: UnitFloat | None = Field(
        None,
        description="lowest agreement with people, as a fraction of the pairs that both ordered, at which the judge "
        "may be used; null: not checked",
    )
    batch_size: PositiveInt = Field(8, description="questions per forward pass, or requests at a time to the endpoint")

    def smoke(self) -> Self:
        """Ask the tiny base model instead of another one, whose random weights cannot agree with people."""
        return self.replace(min_agreement=None, **({} if self.model is None else {"model": "base", "revision": None}))


class Revise(Section):
    """Let a model critique and revise its own completions by a constitution. The revisions are demonstrations."""

    of: Annotated[str, PathKind("run", ("base",))] = Field(
        "sft", description="the model that writes, critiques and revises: an sft or ppo run, a directory, or base"
    )
    constitution: Annotated[str | None, PathKind("file")] = Field(
        None, description="a YAML file with a list of principles; null: feedback.judge.constitution"
    )
    prompts: PositiveInt | None = Field(None, description="maximum number of prompts, drawn at random; null: all")
    rounds: PositiveInt = Field(1, description="critiques and revisions per completion, each by a principle drawn anew")
    temperature: PositiveFloat = Field(1.0, description="sampling temperature")
    max_new_tokens: PositiveInt = Field(256, description="maximum length of a completion, in tokens")
    max_prompt_length: PositiveInt = Field(1024, description="prompts with more tokens are skipped")
    batch_size: PositiveInt = Field(32, description="sequences per forward pass")

    def smoke(self) -> Self:
        """Revise short completions of four prompts once."""
        return self.replace(prompts=min(self.prompts or 4, 4), rounds=1, max_new_tokens=8)


class Feedback(Section):
    """Collect judgments of people in a store, and write them as versioned preference data."""

    store: Annotated[str, PathKind("store")] = Field(
        "feedback.db",
        description="SQLite file next to the recipe, or a PostgreSQL URL without a password; the environment variable "
        "RLHF_FEEDBACK_STORE has precedence",
    )
    guideline: Annotated[str | None, PathKind("file")] = Field(
        None, description="a Markdown file with the instructions for annotators; each judgment records its hash"
    )
    task: Literal["rank", "best-worst", "pair"] = Field(
        "rank",
        description="rank: order all completions, with ties; best-worst: choose the best and the worst; pair: compare "
        "two completions, with strength",
    )
    criteria: list[str] = Field([], description="aspects that annotators also rate from 1 to 5, such as helpful")
    overlap: PositiveInt = Field(2, description="judgments per item")
    max_overlap: PositiveInt = Field(5, description="judgments per item on which annotators disagree")
    gold: Gold | None = Field(None, description="items with a known answer; null: none")
    repeats: UnitFloat = Field(
        0.05, description="fraction of an annotator's items that are shown again, in reversed order"
    )
    qualification: Qualification | None = Field(None, description="a test before the first item; null: none")
    lease_minutes: PositiveFloat = Field(
        60.0, description="how long an item is reserved for an annotator who opened it, in minutes"
    )
    aggregate: Literal["majority", "dawid-skene", "expert"] = Field(
        "majority",
        description="how the judgments of an item become one label per pair: majority: votes count equally; "
        "dawid-skene: votes count by each annotator's estimated accuracy; expert: only the decisions of experts",
    )
    pairs: Literal["closure", "best-worst"] = Field(
        "closure",
        description="pairs of a ranking: closure: every ordered pair; best-worst: only the best with the worst",
    )
    sources: Annotated[list[Literal["human", "ai"]], Field(min_length=1)] = Field(
        ["human"], description="whose judgments are exported"
    )
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="fraction of the prompts in the split test, which is held out; independent of the seed"
    )
    min_votes: PositiveInt = Field(1, description="pairs with fewer votes are not exported")
    held_out_annotators: UnitFloat = Field(
        0.0,
        description="fraction of the annotators whose judgments are exported as a split of their own, annotators, and "
        "are not used for the labels",
    )
    judge: Judge | None = Field(None, description="the model that `rlhf annotate judge` asks; null: none")
