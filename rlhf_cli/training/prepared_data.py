"""Load, tokenize and count a stage's data without loading weights. Shared by the stage and `--dry-run`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from rlhf_cli.data import chat_template, sources, tokenization
from rlhf_cli.data.chat_template import Encoded
from rlhf_cli.data.row_policy import RowPolicy
from rlhf_cli.data.rows import PromptRow, Split
from rlhf_cli.data.splits import select_shortest
from rlhf_cli.formatting import format_count
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe.smoke import SMOKE_CANDIDATES
from rlhf_cli.training import length_checks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class TokenizedRows(Protocol):
    """Rows as token ids; `counts` says how many were dropped or truncated, by reason."""

    @property
    def kept(self) -> int:
        """Number of rows."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of rows that were dropped or truncated, by reason."""

    def sequences(self) -> Iterator[list[int]]:
        """Yield the token ids of each sequence."""

    def lengths(self) -> list[int]:
        """Return the tokens of each sequence."""


@dataclass(frozen=True)
class PreparedData:
    """A stage's data, ready to train on.

    Attributes:
        tokenizer: The tokenizer with its chat template and pad token set.
        split: The rows before tokenization, and how many were read and dropped.
        train: The rows to train on.
        held_out: The held-out rows.
        example: The first training row, or packed sequence; its completion is under the loss.
        warnings: What the user should know about the rows' lengths.
        facts: Further facts for `--dry-run`.
    """

    tokenizer: PreTrainedTokenizerBase
    split: Split[Any]
    train: Any  # TokenizedRows of the stage's own kind
    held_out: Any
    example: Encoded
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def conversational(self) -> bool:
        """Whether some rows to train on are conversations, which the chat template renders."""
        return any(isinstance(getattr(row, "prompt", None), list) for row in self.split.train)

    def log(self, noun: str) -> None:
        """Log the number of rows, each reason why rows were truncated or dropped, and the warnings."""
        log_rows(noun, self.split, self.train, self.warnings)


def log_rows(noun: str, split: Split[Any], train: TokenizedRows, warnings: Sequence[str]) -> None:
    """Log the number of rows, each reason why rows were truncated or dropped, and the warnings."""
    logger.info(f"{noun}: {format_count(train.kept, 'row')} to train on, {len(split.held_out):,} held out")
    log_dropped(noun, split, train, warnings)


def log_dropped(noun: str, split: Split[Any], train: TokenizedRows, warnings: Sequence[str]) -> None:
    """Log each reason why rows were truncated or dropped, and the warnings."""
    for reason, number in {**split.counts, **train.counts}.items():
        if number and reason.startswith(("dropped", "truncated")):
            logger.warning(f"{noun}: {format_count(number, 'row')} {reason}")
    for warning in warnings:
        logger.warning(warning)


def load_tokenizer(stage: ResolvedStage) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer and set its chat template, end tokens and pad token."""
    from rlhf_cli.models import loading

    tokenizer = loading.load_tokenizer(stage.base_path, stage.recipe.base.revision)
    chat_template.prepare(tokenizer, stage.recipe.base.chat_template)
    return tokenizer


def load_rows(stage: ResolvedStage, kind: str, limit: int | None = None) -> Split[Any]:
    """Load a dataset of the stage. A smoke run uses few rows, the shortest of those read.

    Args:
        stage: The resolved stage.
        kind: The dataset.
        limit: Rows of each source that are read and used; None: as many as the stage needs.
    """
    given = getattr(stage.recipe.data, kind)
    assert given, "the recipe was validated for this stage"
    selects = stage.row_limit is not None and limit is None
    any_kind: Any = kind
    split: Split[Any] = sources.load(
        given,
        any_kind,
        seed=stage.recipe.seed,
        find=stage.dataset_path,
        limit=SMOKE_CANDIDATES if selects else limit,
        policy=RowPolicy.of(stage.recipe),
    )
    if not selects:
        return split
    assert stage.row_limit is not None
    return replace(
        split,
        train=select_shortest(split.train, stage.row_limit),
        held_out=select_shortest(split.held_out, stage.row_limit),
    )


def prepare_rows(
    stage: ResolvedStage,
    tokenize: Callable[[Any, list[Any], int], TokenizedRows],
    first: Callable[[Any, list[Any], int], Encoded] | None = None,
    *,
    held_out: int | None = None,
) -> PreparedData:
    """Load and tokenize the stage's dataset and check its lengths.

    Args:
        stage: The resolved stage.
        tokenize: Tokenizes rows with the stage's length limit.
        first: Returns the first row that fits, as it is trained on. None: rows are prompts, nothing is under the loss.
        held_out: How many held-out rows are tokenized; None: all.

    Raises:
        DataError: A row is invalid, or no row is left to train on.
        RecipeError: A row exceeds the base model's positions.
    """
    assert stage.spec.dataset is not None
    tokenizer = load_tokenizer(stage)
    split = load_rows(stage, stage.spec.dataset)
    train = tokenize(tokenizer, split.train, stage.max_length)
    aside = tokenize(tokenizer, split.held_out[:held_out], stage.max_length)
    limit = length_checks.LengthLimit.of_stage(stage)
    warnings = length_checks.check_all(stage, limit, tokenizer, train, aside)
    example = first(tokenizer, split.train, stage.max_length) if first else Encoded(next(train.sequences()), [])
    return PreparedData(tokenizer, split, train, aside, example, warnings)


def prepare_all_prompts(stage: ResolvedStage) -> PreparedData:
    """Load and tokenize data.prompts in random order, at most as many as the field `prompts` of the stage's section.

    Those that a hash holds out are used, too: the same hash holds out the rows that are made of them. Those that are
    held out as a split are not: the rows would be trained on.
    """
    sources = [
        source if source.eval_split or source.run else source.replace(eval_fraction=0.0)
        for source in stage.recipe.data.prompts or []
    ]
    recipe = stage.recipe.replace(data=stage.recipe.data.replace(prompts=sources))
    limit = stage.section.prompts

    def tokenize(tokenizer: Any, rows: list[PromptRow], max_length: int) -> tokenization.TokenizedPrompts:
        return tokenization.fitting_prompts(tokenizer, rows[:limit], max_length)

    return prepare_rows(replace(stage, recipe=recipe), tokenize)
