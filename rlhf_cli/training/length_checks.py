"""Rows against the recipe's limits on their length, and against the base's: the same words in --dry-run and stage."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rlhf_cli.errors import DataError, ModelError, RecipeError
from rlhf_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_cli.data.tokenization import Columns, FittingPrompts


def check_all(
    stage: str,
    recipe: Recipe,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    train: Columns | FittingPrompts,
    held_out: Columns | FittingPrompts,
) -> list[str]:
    """Hold a stage's encoded rows, of both sides, against its limits and against the base at `source`.

    Raises as `check` and `check_ids`.
    """
    from rlhf_cli.models import loading

    size = loading.sizes(source, recipe.base.revision)
    longest = max(held_out.lengths(), default=0)
    warnings = check(stage, recipe, train.lengths(), train.counts, positions=size.positions, held_out=longest)
    sequences = itertools.chain(train.sequences(), held_out.sequences())
    check_ids(tokenizer, sequences, size.embeddings, source)
    return warnings


def check(
    stage: str,
    recipe: Recipe,
    lengths: Sequence[int],
    counts: Mapping[str, int],
    *,
    positions: int | None,
    held_out: int = 0,
) -> list[str]:
    """Hold the rows of sft, reward or ppo that were kept, by their `lengths` in tokens, against the limits.

    `counts`: rows that were dropped or cut, by reason; `positions`: as in `check_positions`; `held_out`: tokens of the
    longest row that is held out.

    Raises:
        DataError: none was kept, or more are over the limit than `data.max_overlong` allows.
        RecipeError: one goes beyond the base's positions.
    """
    if stage == "ppo":
        key, allowed, answer = "ppo.max_prompt_length", recipe.ppo.max_prompt_length, recipe.ppo.max_new_tokens
    else:
        allowed, answer = recipe.sft.max_length if stage == "sft" else recipe.reward.max_length, 0
        key = f"{stage}.max_length"
    if not lengths:
        why = ", ".join(f"{reason}: {count:,}" for reason, count in counts.items() if count)
        raise DataError(f"no row is left to train on ({why}).", location=key, hint="Raise it, or hint the data.")
    over = sum(counts.values())
    kept = len(lengths) // 2 if stage == "reward" else len(lengths)  # a pair has two
    rows = kept + sum(count for reason, count in counts.items() if reason.startswith("dropped"))
    if over > recipe.data.max_overlong * rows:
        message = f"{over:,} of {rows:,} rows are over {allowed:,} tokens, and data.max_overlong is "
        hint = f"Raise {key} or data.max_overlong, or shorten the rows."
        raise DataError(f"{message}{recipe.data.max_overlong:g}.", location=key, hint=hint)
    location, what = ("ppo.max_new_tokens", "a prompt with its answer") if answer else (key, "a row")
    longest = max(max(lengths), held_out)
    return check_positions(positions, longest + answer, allowed + answer, location, what=what)


def check_ids(
    tokenizer: PreTrainedTokenizerBase, sequences: Iterable[Sequence[int]], embeddings: int | None, source: str
) -> None:
    """Hold the token ids that are used against the embeddings that the model at `source` has: torch would crash.

    Raises:
        ModelError: one is beyond them. A token that is never used may be.
    """
    if embeddings is None or max(tokenizer.get_vocab().values()) < embeddings:
        return
    largest = max(max(map(max, sequences)), tokenizer.pad_token_id or 0)
    if largest >= embeddings:
        token = tokenizer.convert_ids_to_tokens(largest)
        message = f"the tokenizer gives {token} the id {largest:,}, and the model has {embeddings:,} embeddings."
        hint = "Take the tokenizer that belongs to the model; where tokens were added to it, resize the model."
        raise ModelError(message, location=source, hint=hint)


def check_positions(positions: int | None, longest: int, allowed: int, location: str, *, what: str) -> list[str]:
    """Hold lengths, in tokens, against the positions that the base has; None: it has no such bound.

    `longest` is what there is, `allowed` by the recipe: a base gives nonsense beyond its positions, or crashes.

    Raises:
        RecipeError: `what` goes beyond them. Where it only might, with other data, that is told.
    """
    if positions is None or allowed <= positions:
        return []
    if longest > positions:
        message = f"{what} has {longest:,} tokens, and the base has {positions:,} positions."
        raise RecipeError(
            message, location=location, hint=f"Lower it by {longest - positions:,}, or take another base."
        )
    has = f"the base has {positions:,} positions; the longest here has {longest:,} tokens"
    return [f"{location}: {what} may have {allowed:,} tokens, and {has}"]
