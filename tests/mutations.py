"""Damaged copies of files, the same for the same seed: what disks, networks and people do to them."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

# In place of a value, whatever it was.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, -7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, 1e39, 1e-320,
    float("nan"), float("inf"), float("-inf"), "", "x", "0", "\x00", "../../etc/passwd", "\ud800",
    "\u0000\u202e", [], [[]], {}, [None], [1, "a"], {"id": 1}, [[0.0] * 6], "1" * 5000,
    "<digits>", "<nested>",
)  # fmt: skip
# What json.dumps does not write.
_TEXTS = {'"<digits>"': "9" * 5000, '"<nested>"': "[" * 10**5 + "]" * 10**5}


def mutate_bytes(data: bytes, seed: int) -> bytes:
    """One to three of: flipped, replaced, inserted, removed, repeated, swapped, cut off bytes."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_BYTE_CHANGES)(data, rng)
    return data


def mutate_json(text: str, seed: int) -> str:
    """One to three changes that keep it JSON: values and keys that should not be where they are."""
    rng = random.Random(seed)
    value = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        value = _change_json(value, rng)
    text = json.dumps(value)
    for placeholder, instead in _TEXTS.items():
        text = text.replace(placeholder, instead)
    return text


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 2, 4, 16, 64, 512)))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    filling = rng.choice((b"\x00", b"\xff", b"\x80", rng.randbytes(1)))
    return data[:begin] + filling * (end - begin) + data[end:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    begin, _ = _span(data, rng)
    return data[:begin] + rng.randbytes(rng.choice((1, 2, 7, 64))) + data[begin:]


def _remove(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + data[end:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:end] + data[begin:end] * rng.choice((1, 2, 50)) + data[end:]


def _swap(data: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_span(data, rng), _span(data, rng)))
    return data if c < b else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[
        : rng.choice((0, 1, 4, len(data) // 2, len(data) - 1, rng.randrange(len(data) + 1)))
    ]


_BYTE_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _overwrite, _insert, _remove, _repeat, _swap, _cut,
)  # fmt: skip


def _change_json(value: Any, rng: random.Random) -> Any:
    """Change one place: the deeper, the more places there are, so each depth is as likely as another."""
    holder: dict | list = {"all": value}
    place: Any = "all"
    depth = rng.randrange(8)
    while depth:
        inner = holder[place]
        if not isinstance(inner, dict | list) or not inner:
            break
        holder, place = (
            inner,
            rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner))),
        )
        depth -= 1
    root = {"all": value} if place == "all" else None
    target = root if root is not None else holder
    change = rng.randrange(6)
    if change <= 2:
        target[place] = copy.deepcopy(rng.choice(_VALUES))
    elif change == 3 and root is None:
        del target[place]  # a key is missing, an entry is
    elif change == 4 and isinstance(target, list):
        target[place:place] = [copy.deepcopy(target[place])] * rng.choice((1, 3))
    elif isinstance(number := target[place], int | float) and not isinstance(number, bool):
        target[place] = rng.choice((-number, number * 10**6, number + 1, str(number)))
    else:
        target[place] = [target[place]]
    return root["all"] if root is not None else value
