"""Jobs: drawn at random, or read from a file."""

from __future__ import annotations

import gzip
import itertools
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from sheaf_runtime.bench.load import Job

LOWEST_ID = 300  # special tokens and single bytes sit at the start of most vocabularies
# One token each, or little more, for most tokenizers; the measured ratio corrects the rest (`calibrate.py`).
_TEXT = """
the of and to in is that for it as was with be by on not he this are or his from at which but have
an had they you were their one all we can her has there been if more when will would who so no out
up into do any your what time about than them some could other then only new two may first these
like water people world
"""
WORDS = tuple(_TEXT.split())


class DatasetError(ValueError):
    """One line that says what is wrong with the file."""


def random_ids(count: int, vocab: int, rng: random.Random) -> list[int]:
    low = min(LOWEST_ID, vocab // 2)
    return [rng.randrange(low, vocab) for _ in range(count)]


def random_jobs(
    count: int,
    prompt_tokens: int,
    output_tokens: int,
    vocab: int,
    seed: int,
    *,
    prefix_tokens: int = 0,
    range_ratio: float = 0.0,
) -> list[Job]:
    """Prompts of random token ids: each differs from its first token behind the common prefix on, so no
    prefix cache can help. Lengths are drawn evenly from ``range_ratio`` around the ones asked for."""
    rng = random.Random(seed)
    prefix = random_ids(prefix_tokens, vocab, rng)
    lengths = [
        (_around(prompt_tokens, range_ratio, rng), _around(output_tokens, range_ratio, rng))
        for _ in range(count)
    ]
    return [Job(prefix + random_ids(length, vocab, rng), most) for length, most in lengths]


def random_texts(jobs: Iterable[Job], words_per_token: float, overhead: float) -> list[Job]:
    """The same lengths in words, for endpoints without token ids. ``overhead`` is in tokens. A common prefix
    stays one, because the word at a place follows from the id there."""
    texts = []
    for job in jobs:
        assert isinstance(job.prompt, list)
        length = max(1, round((len(job.prompt) - overhead) * words_per_token))
        ids = itertools.islice(itertools.cycle(job.prompt), length)
        texts.append(Job(" ".join(WORDS[id_ % len(WORDS)] for id_ in ids), job.max_tokens))
    return texts


def custom(path: Path, output_tokens: int) -> list[Job]:
    """JSON lines with ``prompt`` and, if they like, ``output_tokens``."""
    jobs = []
    for number, row in rows(path):
        prompt, most = row.get("prompt"), row.get("output_tokens", output_tokens)
        if not isinstance(prompt, str) or not prompt or not isinstance(most, int) or most < 1:
            raise DatasetError(f"{path}:{number}: a row is " + '{"prompt": "...", "output_tokens": 256}')
        jobs.append(Job(prompt, most))
    return _some(jobs, path)


def sharegpt(path: Path, output_tokens: int | None) -> list[Job]:
    """The first question of each conversation. Without ``output_tokens`` an answer is as long as the one in
    the file, at four characters a token."""
    jobs = []
    value = _json(read(path), path)
    for entry in value if isinstance(value, list) else ():
        turns = (
            entry.get("conversations") or entry.get("conversation") or () if isinstance(entry, dict) else ()
        )
        texts = [str(turn.get("value") or "") for turn in turns if isinstance(turn, dict)]
        if len(texts) >= 2 and texts[0].strip() and texts[1].strip():
            jobs.append(Job(texts[0], output_tokens or max(4, len(texts[1]) // 4)))
    return _some(jobs, path)


def timed_trace(
    path: Path, vocab: int, block: int, multiplier: float, seed: int
) -> tuple[list[Job], list[float]]:
    """Jobs and arrivals in seconds of a trace as Mooncake's: JSON lines with ``timestamp``,
    ``input_length``, ``output_length`` and ``hash_ids``, one for each ``block`` tokens of the prompt:
    equal ids, equal tokens."""
    jobs, arrivals = [], []
    for number, row in rows(path):
        try:
            length, most = int(row["input_length"]), int(row["output_length"])
            when, hashes = float(row["timestamp"]) * multiplier, list(row.get("hash_ids") or ())
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path}:{number}: a row has timestamp, input_length, output_length and hash_ids"
            ) from error
        parts = [random_ids(block, vocab, random.Random(f"{seed} {hash_}")) for hash_ in hashes]
        prompt = [id_ for part in parts for id_ in part][:length]
        prompt += random_ids(max(0, length - len(prompt)), vocab, random.Random(f"{seed} row {number}"))
        jobs.append(Job(prompt or [LOWEST_ID], max(1, most)))
        arrivals.append(when)
    _some(jobs, path)
    order = sorted(range(len(jobs)), key=arrivals.__getitem__)
    return [jobs[i] for i in order], [arrivals[i] - min(arrivals) for i in order]


def as_many(jobs: list[Job], count: int, seed: int) -> list[Job]:
    """``count`` of them in a drawn order, again from the first where there are fewer."""
    random.Random(seed).shuffle(jobs)
    return list(itertools.islice(itertools.cycle(jobs), count))


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read(path).splitlines(), start=1):
        if line.strip():
            row = _json(line, path, f":{number}")
            if not isinstance(row, dict):
                raise DatasetError(f"{path}:{number}: not a JSON object; one a line is wanted")
            yield number, row


def read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        raise DatasetError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _json(data: bytes, path: Path, place: str = "") -> Any:
    try:
        return orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise DatasetError(f"{path}{place}: {error}") from error


def _some(jobs: list[Job], path: Path) -> list[Job]:
    if not jobs:
        raise DatasetError(f"{path} holds no request of this --dataset-name")
    return jobs


def _around(length: int, ratio: float, rng: random.Random) -> int:
    return max(1, rng.randint(round(length * (1 - ratio)), round(length * (1 + ratio))))
