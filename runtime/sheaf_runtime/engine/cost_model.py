"""What a step costs, learnt from the steps that ran. Pure: no clock, no device.

    seconds = fixed + a * prompt tokens + b * decodes + c * positions that decodes read
              + d * (prompt token, position it attends to) pairs + e * drafts

A *decode* is a request whose next token the step makes; *drafts* are further tokens of it (``speculation``).
Six coefficients, none negative, by least squares over
the steps so far, of which later ones count more. Three things make it hold on a real machine:

- errors count relative to the step's duration, so that a decode of 40 ms is fitted as well as a prompt of
  2 s, and what made a step slow (a first compilation, a neighbour) weighs the less the slower it was;
- a step that is far from what was foreseen counts less (Huber's weight), until that goes on: then the machine
  has changed, and the scale of errors grows by itself until it is believed;
- steps with and without prompt tokens fade apart, so that an hour of chats does not make the cost of prompts
  forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEMORY = 25  # steps of a kind after which one counts 1/e
NEARBY = 2.0  # scales of error up to which a step counts in full
STEADY = 1e-3  # how firmly a coefficient stays where the steps do not tell
LEAST_ERROR = 0.02  # relative; a machine that is never off by more

FEATURES = 6

Vector = list[float]


@dataclass(slots=True)
class StepWork:
    """What makes up a step's cost."""

    prompt_tokens: int = 0
    decodes: int = 0
    decode_context: int = 0  # positions that decodes attend to
    prompt_pairs: float = 0.0  # (prompt token, position it attends to)
    drafts: int = 0

    def add(self, start: int, num_tokens: int) -> None:
        """``num_tokens`` more of a request from position ``start``."""
        if num_tokens == 1:
            self.decodes += 1
            self.decode_context += start + 1
        else:
            self.prompt_tokens += num_tokens
            self.prompt_pairs += pairs(start, num_tokens)


def pairs(start: int, num_tokens: int) -> float:
    """Positions that ``num_tokens`` tokens from position ``start`` attend to, in sum."""
    return num_tokens * (start + (num_tokens + 1) / 2)


class CostModel:
    """One for each engine; ``observe`` each step, then ask."""

    def __init__(self) -> None:
        self._fade = math.exp(-1 / MEMORY)
        self._kinds = [_Sums(), _Sums()]  # of steps without prompt tokens, and with
        self._coefficients: Vector = [0.0] * FEATURES
        self._error = 1.0  # relative, typical

    @property
    def known(self) -> bool:
        """Whether any step was seen."""
        return any(self._coefficients)

    @property
    def coefficients(self) -> dict[str, float]:
        """Seconds per unit of each; for records."""
        names = ("fixed", "prompt_token", "decode", "decode_position", "prompt_pair", "draft")
        return dict(zip(names, self._coefficients, strict=True))

    def observe(self, work: StepWork, seconds: float) -> None:
        """A step of this ``work`` took ``seconds``; what can be no duration is ignored."""
        if not (0 < seconds < math.inf) or not (work.prompt_tokens or work.decodes):
            return
        row = _features(work)
        error = abs(self.predict(work) / seconds - 1) if self.known else 0.0
        weight = min(1.0, NEARBY * self._error / error) if error else 1.0
        self._error += 0.1 * (min(error, 4 * self._error) - self._error)
        self._error = max(self._error, LEAST_ERROR)
        self._kinds[work.prompt_tokens > 0].take([x / seconds for x in row], weight, self._fade)
        self._coefficients = self._fit()

    def predict(self, work: StepWork) -> float:
        """Seconds."""
        return sum(c * x for c, x in zip(self._coefficients, _features(work), strict=True))

    @property
    def draft_seconds(self) -> float:
        """What a draft adds to a step; 0 where none was seen."""
        return self._coefficients[-1]

    def prompt_seconds(self, start: int, num_tokens: int) -> float:
        """What so many prompt tokens from position ``start`` add to a step that runs anyway."""
        _, token, _, _, pair, _ = self._coefficients
        return token * num_tokens + pair * pairs(start, num_tokens)

    def prompt_tokens_within(self, seconds: float, start: int, most: int) -> int:
        """The inverse: how many prompt tokens from position ``start`` add at most ``seconds``, up
        to ``most``. Where nothing is known, nothing is held back."""
        if not self.known:
            return most
        if seconds <= 0:
            return 0
        if self.prompt_seconds(start, most) <= seconds:
            return most
        _, token, _, _, pair, _ = self._coefficients
        linear, square = token + pair * (start + 0.5), pair / 2  # linear * n + square * n * n <= seconds
        guess = 2 * seconds / (linear + math.sqrt(linear * linear + 4 * square * seconds))
        count = min(most, max(0, int(guess) + 1))
        while count and self.prompt_seconds(start, count) > seconds:  # the last bits of a float
            count -= 1
        return count

    def _fit(self) -> Vector:
        """The minimum of the squared errors, held where it was in directions that no step has told of."""
        without, with_prompts = self._kinds
        gram = [
            [x + y for x, y in zip(a, b, strict=True)]
            for a, b in zip(without.gram, with_prompts.gram, strict=True)
        ]
        moment = [x + y for x, y in zip(without.moment, with_prompts.moment, strict=True)]
        for i, before in enumerate(self._coefficients):
            hold = STEADY * gram[i][i]
            gram[i][i] += hold
            moment[i] += hold * before
        return solve_nonnegative(gram, moment)


class _Sums:
    """Of one kind of steps: the two sides of the normal equations, of rows whose right side is 1."""

    def __init__(self) -> None:
        self.gram = [[0.0] * FEATURES for _ in range(FEATURES)]
        self.moment = [0.0] * FEATURES

    def take(self, row: Vector, weight: float, fade: float) -> None:
        for i, x in enumerate(row):
            self.moment[i] = fade * self.moment[i] + weight * x
            self.gram[i] = [fade * g + weight * x * y for g, y in zip(self.gram[i], row, strict=True)]


def _features(work: StepWork) -> Vector:
    return [1.0, work.prompt_tokens, work.decodes, work.decode_context, work.prompt_pairs, work.drafts]


def solve_nonnegative(gram: list[Vector], moment: Vector) -> Vector:
    """``gram @ x = moment`` in the least squares sense with x >= 0: what would be most negative is held at 0
    and the rest solved again. ``gram`` is symmetric and, where its diagonal is not 0, positive definite."""
    solution = [0.0] * len(moment)
    free = [i for i in range(len(moment)) if gram[i][i] > 0]
    while free:
        scales = [1 / math.sqrt(gram[i][i]) for i in free]  # the units differ by many powers of ten
        matrix = [
            [gram[i][j] * s * t for j, t in zip(free, scales, strict=True)]
            for i, s in zip(free, scales, strict=True)
        ]
        found = _solve(matrix, [moment[i] * s for i, s in zip(free, scales, strict=True)])
        worst = min(range(len(free)), key=found.__getitem__)
        if found[worst] >= 0:
            for i, x, s in zip(free, found, scales, strict=True):
                solution[i] = x * s
            break
        del free[worst]
    return solution


def _solve(matrix: list[Vector], right: Vector) -> Vector:
    """Gauss without pivots: the matrix is positive definite. Both arguments are used up."""
    size = len(right)
    for i in range(size):
        for j in range(i + 1, size):
            factor = matrix[j][i] / matrix[i][i]
            for k in range(i, size):
                matrix[j][k] -= factor * matrix[i][k]
            right[j] -= factor * right[i]
    for i in reversed(range(size)):
        right[i] -= sum(matrix[i][k] * right[k] for k in range(i + 1, size))
        right[i] /= matrix[i][i]
    return right
