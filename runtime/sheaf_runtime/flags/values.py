"""The values of command-line flags: from text, refused with what to write instead."""

from __future__ import annotations

import argparse
import re
from typing import Any, TypeVar

import msgspec
import orjson

from sheaf_runtime.config import KVEventsConfig, LoraModule, PoolerConfig, SpeculativeConfig

T = TypeVar("T", bound=msgspec.Struct)

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate(("k", "m", "g", "t"), start=1)}

A_YEAR = 365 * 86400


def byte_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?i?)b?", text.strip().lower())
    size = int(float(match[1]) * UNITS.get(match[2], 0)) if match and len(match[1]) < 20 else 0
    if not 0 < size < 2**60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes, or 2GiB, 500MB")
    return size


def positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 10 or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to {2**31 - 1}")
    return int(text)


def count(text: str) -> int:
    return 0 if text == "0" else positive(text)


def seed(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,19}", text) or not -(2**63) <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at most 64 bits with its sign")
    return int(text)


def port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port from 1 to 65535")
    return int(text)


def revision(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text) or ".." in text:
        raise argparse.ArgumentTypeError(f"{text!r} must be a branch, a tag or a commit")
    return text


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= A_YEAR:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds from 0 to {A_YEAR}")
    return value


def some_seconds(text: str) -> float:
    if not (value := seconds(text)):
        raise argparse.ArgumentTypeError("0 must be a number of seconds above 0")
    return value


def milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value <= A_YEAR * 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of milliseconds above 0")
    return value


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0 and at most 1")
    return value


def pooler_config(text: str) -> PoolerConfig:
    return _struct(text, PoolerConfig)


def kv_events_config(text: str) -> KVEventsConfig:
    config = _struct(text, KVEventsConfig)
    if min(config.buffer_steps, config.hwm) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: buffer_steps and hwm must not be negative")
    return config


def speculative_config(text: str) -> SpeculativeConfig:
    given = json_object(text)
    if (method := given.get("method", "ngram")) != "ngram":
        raise argparse.ArgumentTypeError(f"{text!r}: method {method} is not supported; use ngram")
    if "model" in given:
        raise argparse.ArgumentTypeError(f"{text!r}: leave model out, ngram proposes without one")
    return _struct(text, SpeculativeConfig)


def lora_module(text: str) -> LoraModule:
    if text.lstrip().startswith("{"):
        module = _struct(text, LoraModule)
    else:
        name, _, path = text.partition("=")
        module = LoraModule(name=name, path=path)
    if not module.name or not module.path:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=FOLDER")
    return module


def _struct(text: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        names = ", ".join(kind.__struct_fields__)
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; it is a JSON object of {names}") from error


def json_object(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object")
    return value
