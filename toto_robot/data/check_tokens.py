"""What is wrong with a token store: a flipped byte, a missing shard, codes that no tokenizer makes, a mixed origin?

Every shard carries the SHA-256 of its token bytes and of those of every clip, so damage is found and named down to the
clip, also where the damaged number is still a valid code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toto_robot.data.finding import ERROR, WARNING, Finding, first
from toto_robot.data.flat_store import FlatStore
from toto_robot.data.token_shards import open_shard
from toto_robot.data.tokens import MANIFEST, UNITS, Tokens, TokenSpec, TokenStore
from toto_robot.run_folder import read_json

_KEY = "tokens"


def check_tokens(path: Path) -> Iterator[Finding]:
    """Yield what is wrong with the store at `path`; ValueError where it is unfinished or none of ours."""
    store = TokenStore.open(path)
    planned = read_json(path / MANIFEST)
    yield from _check_origin(store.spec, planned["settings"], "its manifest")
    if len(store.shards) != len(planned["units"]):
        what = f"expected the {len(planned['units'])} units of the manifest, got {len(store.shards)}: run the job again"
        yield Finding(WARNING, None, None, MANIFEST, what)
    clip = 0
    for listed in store.shards:
        folder = path / UNITS / listed["name"]
        try:
            yield from _check_shard(store, open_shard(folder), listed, clip)
        except (ValueError, OSError, IndexError) as error:
            yield Finding(ERROR, clip, None, f"{UNITS}/{listed['name']}", f"expected a readable shard, got: {error}")
        clip += int(listed["clips"])


def _check_shard(store: TokenStore, shard: FlatStore, listed: Mapping[str, Any], clip: int) -> Iterator[Finding]:
    """Check one shard, whose first clip has the number `clip` in the store."""
    name = f"{UNITS}/{listed['name']}"
    yield from _check_origin(store.spec, shard.attributes, name)
    rows, records = shard.data[_KEY].read(0, shard.rows), shard.records
    if [shard.rows, shard.items] != [listed["rows"], listed["clips"]]:
        what = f"expected the {listed['rows']} frames of {listed['clips']} clips that the root lists, got {shard.rows}"
        yield Finding(ERROR, clip, None, name, f"{what} of {shard.items}")
        return
    if records != store.records[clip : clip + len(records)]:
        yield Finding(ERROR, clip, None, name, f"expected the {listed['clips']} records of the store, got others")
        return
    if np.diff(shard.ends, prepend=0).tolist() != [record["frames"] for record in records]:
        yield Finding(ERROR, clip, None, name, "expected clip_ends to add up the frames of its records, got others")
        return
    if not shard.attributes["sha256"] == listed["sha256"] == hashlib.sha256(rows.data).hexdigest():
        yield from _name_damage(shard, rows, clip, name)
    for row in first((rows >= store.vocab).any(axis=1)):
        at = int(np.searchsorted(shard.ends, row, side="right"))
        what = f"expected tokens below {store.vocab}, got {rows[row].max()}"
        yield Finding(ERROR, clip + at, row - shard.bounds(at)[0], _KEY, what)


def _name_damage(shard: FlatStore, rows: Tokens, clip: int, name: str) -> Iterator[Finding]:
    """Say which clips of a shard that fails its checksum are not what was written."""
    found = False
    for index, record in enumerate(shard.records):
        start, stop = shard.bounds(index)
        if hashlib.sha256(rows[start:stop].data).hexdigest() != record["sha256"]:
            found = True
            what = f"expected tokens of {record['name']} with the SHA-256 of its record, got others"
            yield Finding(ERROR, clip + index, None, _KEY, f"{what}: delete {name} and run the job again")
    if not found:
        what = "expected the SHA-256 that the root lists, got another: the shard is of another job"
        yield Finding(ERROR, clip, None, name, what)


def _check_origin(spec: TokenSpec, attributes: Mapping[str, Any], where: str) -> Iterator[Finding]:
    """Check that what decides a token's meaning is the same as in the root."""
    for key, value in spec.attributes().items():
        if attributes.get(key) != value:
            yield Finding(
                ERROR, None, None, key, f"expected {value} as in the root, got {attributes.get(key)} in {where}"
            )
