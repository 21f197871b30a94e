"""Where an answer ends: at an end token, or where its text holds a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_cli.data import chat_template


class StoppingRules:
    """End tokens of the tokenizer, and the recipe's stop strings. The token that ends an answer belongs to it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str] = ()) -> None:
        self.ids = chat_template.stop_ids(tokenizer)
        self.strings = tuple(strings)
        self._tokenizer = tokenizer
        # Tokens that may reach into the longest string: a token holds a byte at least; some hold none (byte order).
        self._window = max((len(string.encode()) for string in strings), default=0) + 4

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the last token of a response so far ends it."""
        if not tokens:
            return False
        return tokens[-1] in self.ids or (bool(self.strings) and self._spells_one(tokens[-self._window :]))

    def cut(self, tokens: list[int]) -> list[int]:
        """The tokens up to the first that ends them, which is kept: it was sampled, also where it doubles as
        padding."""
        if not self.strings:
            return next((tokens[: at + 1] for at, token in enumerate(tokens) if token in self.ids), tokens)
        return next((tokens[:end] for end in range(1, len(tokens) + 1) if self.ends(tokens[:end])), tokens)

    def is_truncated(self, response: Sequence[int]) -> bool:
        """Whether the response ran into the limit on its length: its last token does not end it."""
        return not self.ends(response)

    def text(self, response: Sequence[int]) -> str:
        """What a response says: without end tokens, and without the first stop string and what is behind it."""
        text = chat_template.decode(self._tokenizer, response)
        found = [at for string in self.strings if (at := text.find(string)) >= 0]
        return text[: min(found)] if found else text

    def _spells_one(self, tokens: Sequence[int]) -> bool:
        text = chat_template.decode(self._tokenizer, tokens)
        return any(string in text for string in self.strings)
