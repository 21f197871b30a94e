"""Validate row lengths against the recipe's limits and the base model's context. Shared by stages and `--dry-run`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rlhf_cli.errors import DataError, ModelError, RecipeError
from rlhf_cli.pipeline.resolve import ResolvedStage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_cli.training.prepared_data import TokenizedRows


class LengthLimit(NamedTuple):
    """The recipe's limit on the tokens of a row.

    Attributes:
        key: The recipe key.
        tokens: Its value.
        sequences_per_row: Token sequences per row; 2 for pairs.
        new_tokens: Tokens that are generated after a prompt.
        new_tokens_key: The recipe key of `new_tokens`, or "" if nothing is generated.
    """

    key: str
    tokens: int
    sequences_per_row: int = 1
    new_tokens: int = 0
    new_tokens_key: str = ""

    @classmethod
    def of_stage(cls, stage: ResolvedStage) -> LengthLimit:
        """Return the limit of a stage on its dataset."""
        spec = stage.spec
        new_tokens = stage.section.max_new_tokens if spec.generates else 0
        new_tokens_key = f"{spec.section}.max_new_tokens" if spec.generates else ""
        key = f"{spec.section}.{spec.max_length_key}"
        return cls(key, stage.max_length, spec.sequences_per_row, new_tokens, new_tokens_key)


def check_all(
    stage: ResolvedStage,
    limit: LengthLimit,
    tokenizer: PreTrainedTokenizerBase,
    train: TokenizedRows,
    held_out: TokenizedRows,
) -> list[str]:
    """Check a stage's tokenized rows against a limit and against the base model. Return warnings.

    Raises:
        DataError: As `check_lengths`.
        RecipeError: As `check_lengths`.
        ModelError: As `check_ids`.
    """
    from rlhf_cli.models import loading

    size = loading.read_model_sizes(stage.base_path, stage.recipe.base.revision)
    check_overlong(limit, train.lengths(), train.counts, stage.recipe.data.max_overlong)
    longest = max([*train.lengths(), *held_out.lengths()]) + limit.new_tokens
    noun = "a prompt with its completion" if limit.new_tokens_key else "a row"
    key = limit.new_tokens_key or limit.key
    warnings = check_positions(size.positions, longest, limit.tokens + limit.new_tokens, key, noun=noun)
    check_rope_switch(size.rope_switch, longest, key, noun=noun)
    sequences = itertools.chain(train.sequences(), held_out.sequences())
    check_ids(tokenizer, sequences, size.embeddings, stage.base_path)
    return warnings


def check_overlong(limit: LengthLimit, lengths: Sequence[int], counts: Mapping[str, int], max_overlong: float) -> None:
    """Check how many rows were over a limit.

    Args:
        limit: The limit.
        lengths: Tokens of each sequence that was kept.
        counts: Rows that were dropped or truncated, by reason.
        max_overlong: The allowed fraction of such rows.

    Raises:
        DataError: No row was kept, or more than the allowed fraction was over the limit.
    """
    if not lengths:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in counts.items() if count)
        hint = f"Raise {limit.key}, or fix the data."
        raise DataError("data.no-usable-rows", f"no rows left to train on ({reasons}).", location=limit.key, hint=hint)
    over = sum(counts.values())
    kept = len(lengths) // limit.sequences_per_row
    rows = kept + sum(count for reason, count in counts.items() if reason.startswith("dropped"))
    if over > max_overlong * rows:
        message = (
            f"too many long rows; found {over:,} of {rows:,} rows over {limit.tokens:,} tokens, "
            f"expected at most {max_overlong:.1%}."
        )
        hint = f"Raise {limit.key} or data.max_overlong, or shorten the rows."
        raise DataError("data.too-many-long-rows", message, location=limit.key, hint=hint)


def check_ids(
    tokenizer: PreTrainedTokenizerBase, sequences: Iterable[Sequence[int]], embeddings: int | None, base_path: str
) -> None:
    """Check that each token id that occurs has an embedding: torch would crash otherwise.

    Raises:
        ModelError: An id is too large. A token that never occurs may be.
    """
    if embeddings is None or max(tokenizer.get_vocab().values()) < embeddings:
        return
    largest = max(max(map(max, sequences)), tokenizer.pad_token_id or 0)
    if largest >= embeddings:
        token = tokenizer.convert_ids_to_tokens(largest)
        message = (
            f"the tokenizer does not match the model; found id {largest:,} for {token}, expected an id below "
            f"{embeddings:,}, the number of embeddings."
        )
        hint = "Use the tokenizer that belongs to the model; if tokens were added, resize the model's embeddings."
        raise ModelError("model.tokenizer-mismatch", message, location=base_path, hint=hint)


def check_positions(positions: int | None, longest: int, limit: int, key: str, *, noun: str) -> list[str]:
    """Check lengths, in tokens, against the base model's positions. Return warnings.

    Args:
        positions: Positions of the base model, or None if it has no limit.
        longest: The longest sequence in the data.
        limit: The longest sequence that the recipe allows.
        key: The recipe key that limits it.
        noun: What has that length.

    Raises:
        RecipeError: A sequence exceeds the positions: the model would give nonsense or crash.
    """
    if positions is None or limit <= positions:
        return []
    if longest > positions:
        subject = f"{noun} " if longest < limit else ""  # rows that reach the limit may have been truncated to it
        message = (
            f"{subject}exceeds the base model's context; found {longest:,} tokens, expected at most {positions:,}."
        )
        hint = f"Lower it by {longest - positions:,}, or use another base model."
        raise RecipeError("recipe.context-exceeded", message, location=key, hint=hint)
    return [
        f"{key}: {noun} may have {limit:,} tokens, but the base model has {positions:,} positions "
        f"(longest in the data: {longest:,} tokens)"
    ]


def check_rope_switch(switch: int | None, longest: int, key: str, *, noun: str) -> None:
    """Check that no batch takes the other rope factors of Phi-3 and Phi-4-mini with long context.

    They depend on the longest row of a batch: the same tokens get other log-probabilities beside a longer row, and a
    completion that grows beyond the switch no longer fits its cache.

    Args:
        switch: Tokens beyond which the factors change, or None if the model has one set of factors.
        longest: The longest sequence in the data.
        key: The recipe key that limits it.
        noun: What has that length.

    Raises:
        RecipeError: A sequence exceeds the switch.
    """
    if switch is not None and longest > switch:
        message = (
            f"{noun} exceeds the length at which the base model changes its rope factors; "
            f"found {longest:,} tokens, expected at most {switch:,}."
        )
        hint = f"Lower it by {longest - switch:,}, or use another base model."
        raise RecipeError("recipe.context-exceeded", message, location=key, hint=hint)
