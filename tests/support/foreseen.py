"""A proposer that knows what will come, and is wrong as often as it is told to be."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


class Foreseen:
    """``answers`` are whole token sequences, prompts included. A proposed token is wrong with the
    probability ``wrong``; behind an answer's end tokens are guessed."""

    def __init__(
        self, answers: Sequence[list[int]], wrong: float, draw: Random, vocab_size: int = 97
    ) -> None:
        self._answers, self._wrong, self._draw, self._vocab = answers, wrong, draw, vocab_size

    def follow(self, token_ids: list[int]) -> bool:
        return True

    def propose(self, token_ids: list[int], most: int) -> list[int]:
        size = len(token_ids)
        rest = next((a[size:] for a in self._answers if a[:size] == token_ids), [])
        rest = (rest + [1] * most)[:most]
        return [self._mistaken(token) if self._draw.random() < self._wrong else token for token in rest]

    def _mistaken(self, token: int) -> int:
        return (token + self._draw.randrange(1, self._vocab)) % self._vocab
