"""Decide which prompts come next: a resumable, seeded order."""

from __future__ import annotations

import random


class PromptOrder:
    """Seeded shuffles of all prompts, one after another.

    The order is a function of the seed and of `served`, so `served` is the only state.

    Attributes:
        served: Prompts taken so far.
    """

    def __init__(self, count: int, seed: int) -> None:
        assert count > 0, "no prompts"
        self.served = 0
        self._count, self._seed = count, seed
        self._shuffles: dict[int, list[int]] = {}  # the shuffle of the current epoch

    def take(self, number: int) -> list[int]:
        """Return the indices of the next `number` prompts."""
        taken: list[int] = []
        while len(taken) < number:
            epoch, position = divmod(self.served, self._count)
            if epoch not in self._shuffles:
                shuffled = random.Random(f"{self._seed}/{epoch}").sample(range(self._count), self._count)
                self._shuffles = {epoch: shuffled}
            part = self._shuffles[epoch][position : position + number - len(taken)]
            taken += part
            self.served += len(part)
        return taken
