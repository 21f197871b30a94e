"""Decide where a completion ends: at an end token, or as soon as its text contains a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_cli.data import chat_template

EXTRA_WINDOW = 4  # tokens; some tokens have no bytes of their own (byte order marks)


class StoppingRules:
    """The tokenizer's end tokens and the recipe's stop strings. The token that ends a response belongs to it.

    Attributes:
        ids: Ids of the end tokens.
        strings: Stop strings.
        window: How many last tokens decide whether a response is complete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str] = ()) -> None:
        self.ids = chat_template.stop_ids(tokenizer)
        self.strings = tuple(strings)
        self._tokenizer = tokenizer
        # The longest string fits into so many tokens: a token has at least one byte.
        self.window = max((len(string.encode()) for string in strings), default=0) + EXTRA_WINDOW

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Return whether the last token of an unfinished response ends it."""
        if not tokens:
            return False
        return tokens[-1] in self.ids or (bool(self.strings) and self._contains_string(tokens[-self.window :]))

    def trim(self, tokens: list[int]) -> list[int]:
        """Return the tokens up to and including the first one that ends the response.

        That token was sampled, so it is kept even if it is also the padding token.
        """
        if not self.strings:
            return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in self.ids), tokens)
        return next((tokens[:end] for end in range(1, len(tokens) + 1) if self.is_complete(tokens[:end])), tokens)

    def is_truncated(self, response: Sequence[int]) -> bool:
        """Return whether the response reached the length limit: its last token does not end it."""
        return not self.is_complete(response)

    def text(self, response: Sequence[int]) -> str:
        """Return the text of a response, without end tokens and up to the first stop string."""
        text = chat_template.decode(self._tokenizer, response)
        starts = [start for string in self.strings if (start := text.find(string)) >= 0]
        return text[: min(starts)] if starts else text

    def _contains_string(self, tokens: Sequence[int]) -> bool:
        text = chat_template.decode(self._tokenizer, tokens)
        return any(string in text for string in self.strings)
