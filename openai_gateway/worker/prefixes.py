"""The prefix cache: what the model has read, kept in a tree over tokens, so that no prompt's beginning is read twice.

A prompt walks down from its owner's root as far as it agrees. One that leaves in the middle of a run splits that run,
one that goes on where a run ends only adds a child with the new part. Using a node uses all those above it, so the
least recently used node is always a leaf, and goes first. Everything runs on the thread that owns the model.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from openai_gateway.worker.filed import Filed
from openai_gateway.worker.snapshots import Layout, Snapshot
from openai_gateway.worker.spill import Spill
from openai_gateway.worker.tree import Node, Partition, common_length, common_prefix, crowded_snapshot, match

__all__ = ["Found", "Prefixes", "Snapshot", "common_length"]

logger = logging.getLogger(__name__)

RUN: Final = 1024
"""Tokens in a node at the most: so much is dropped at a time, and no split copies more."""


@dataclass(frozen=True, slots=True)
class Found:
    """`cache` holds the first `length` tokens of the prompt, for one row (None: none); it may be written to.

    `diverged_at`: how many tokens the prompt has in common with anything kept for its owner, usable or not; all of
    them if it is kept whole, None if nothing is kept for the owner.
    """

    length: int
    diverged_at: int | None
    cache: list[Any] | None


class Absent(NamedTuple):
    """A run that is on disk alone; with `resume`, windows and recurrent layers are needed for its end as well."""

    node: Node
    resume: bool

    @property
    def end(self) -> int:
        """Tokens from the beginning of the prompt to where it ends."""
        return self.node.end


class Prefixes:
    """Keeps `capacity` bytes for all owners together; nothing if that is 0.

    Owners with more than an equal share of the capacity make room first; of those the least recently used leaf goes.
    Of an entry larger than what there is room for, the front is kept. `shared`: one tree for all owners.

    `make_cache` gives the model's empty caches for one row. If they are of a kind that cannot be kept, `supported` is
    False, `reason` says why, and nothing is ever found.

    `spill`: what leaves memory goes to disk, and is found there, after a restart as well, as far as memory has room for
    it then.
    """

    def __init__(
        self, make_cache: Callable[[], list[Any]], *, capacity: int, shared: bool = False, spill: Spill | None = None
    ) -> None:
        self._layout = Layout(make_cache)
        self.reason = self._layout.reason
        self.supported = self.reason is None
        self.nbytes = 0
        self._capacity = capacity if self.supported else 0
        self._shared = shared
        self._partitions: dict[str, Partition] = {}
        self._clock = 0
        self._filed = Filed(self._layout, spill if self.keeping else None)
        for node in self._filed.restore(self._partitions):
            self._touch(node)
        self._forget()

    @property
    def needs_snapshots(self) -> bool:
        """Whether a prefix can only be entered where there is a snapshot."""
        return self.supported and self._layout.whole

    @property
    def keeping(self) -> bool:
        """Whether anything is ever kept."""
        return self._capacity > 0

    def find(self, owner: str, tokens: Sequence[int]) -> Found:
        """The longest usable prefix: at most all tokens but the last, which the model must read to go on.

        With windows or recurrent layers it ends at a snapshot. What is needed from disk is read now, as far as there is
        memory for it.
        """
        partition = self._partitions.get(self._key(owner))
        if partition is None:
            return Found(0, None, None)
        limit = len(tokens) - 1
        while True:
            path, common = match(partition.root, tokens)
            length = self._usable(path, min(common, limit))
            used = [node for node in path if node.start < length]
            if path:
                self._touch(path[-1])
                self._filed.touch(path[-1])
            missing = next((node for node in used if not self._bring(node, resume=node.end == length)), None)
            if missing is None:
                break
            limit = missing.start
        cache = None
        if length:
            cache = self._layout.compose([node.slices or () for node in used], length, used[-1].snapshot)
        return Found(length, common if partition.root.children else None, cache)

    def absent(self, owner: str, tokens: Sequence[int]) -> Absent | None:
        """The first run that `find` would read from disk for this prompt."""
        if not self._filed.nodes:
            return None
        path, length = self._walk(owner, tokens)
        used = (Absent(node, resume=node.end == length) for node in path if node.start < length)
        return next((run for run in used if not self._is_here(run.node, resume=run.resume)), None)

    def fetch(self, run: Absent) -> None:
        """Read it, if memory has room for it; to read a long prefix takes its time."""
        self._bring(run.node, resume=run.resume)

    def covered(self, owner: str, tokens: Sequence[int]) -> int:
        """The length that `find` gives where memory has room for it; files are not looked into. This is not a use."""
        return self._walk(owner, tokens)[1]

    def snapshot(self, cache: list[Any], back: int = 0) -> Snapshot | None:
        """The layers of `cache` (one row) that cannot be cut, as they were `back` tokens ago.

        None if none are needed, or that cannot be told any more.
        """
        return self._layout.snapshot(cache, back) if self.keeping else None

    def keep(self, owner: str, tokens: Sequence[int], cache: list[Any], snapshots: Mapping[int, Snapshot]) -> None:
        """Keep what `cache` (one row) holds of `tokens`, all of which it has read; `snapshots` by their lengths.

        Only what is new is copied. Where snapshots are needed, nothing behind the last one is of use, nor kept.
        ValueError if cache, tokens and snapshots do not belong together.
        """
        if not self.keeping:
            return
        self._layout.check(cache, len(tokens), snapshots)
        key = self._key(owner)
        node = (self._partitions.get(key) or Partition(key)).root
        for stop in sorted(snapshots) if self._layout.whole else [len(tokens)]:
            if (reached := self._reach(node, tokens, stop, cache, snapshots.get(stop))) is None:
                break
            node = reached

    def shrink(self, nbytes: int) -> None:
        """Give memory back until at most so many bytes are kept."""
        while self.nbytes > nbytes:
            owners = [partition for partition in self._partitions.values() if partition.order]
            # There is such an owner whenever there are too many bytes.
            heavy = (partition for partition in owners if partition.nbytes * len(owners) > nbytes)
            leaf = min((next(iter(partition.order)) for partition in heavy), key=lambda node: node.used)
            if (crowded := crowded_snapshot(leaf)) is not None:
                self._thin(crowded)
            else:
                self._evict(leaf)

    def flush(self, runs: int | None = None) -> bool:
        """Write runs that are not on disk yet, so many at the most; whether there was anything to write.

        The most recently used go first, as long as they displace nothing. For idle moments, and before the end.
        """
        nodes = (node for partition in self._partitions.values() for node in partition.order)
        written = self._filed.write_ahead(nodes, runs)
        self._forget()
        return written

    def shares(self, one: str, other: str) -> bool:
        """Whether one owner finds what is kept for the other."""
        return self._shared or one == other

    def _key(self, owner: str) -> str:
        return "shared" if self._shared else blake2b(owner.encode(), digest_size=16).hexdigest()

    def _walk(self, owner: str, tokens: Sequence[int]) -> tuple[list[Node], int]:
        """The runs that this prompt begins with, and how many of its tokens may be used of them."""
        if (partition := self._partitions.get(self._key(owner))) is None:
            return [], 0
        path, common = match(partition.root, tokens)
        return path, self._usable(path, min(common, len(tokens) - 1))

    def _usable(self, path: list[Node], limit: int) -> int:
        if not self._layout.whole:
            return max(0, limit)
        return max((node.end for node in path if node.resumable and node.end <= limit), default=0)

    # Growth

    def _reach(
        self, node: Node, tokens: Sequence[int], stop: int, cache: list[Any], snapshot: Snapshot | None
    ) -> Node | None:
        """From `node` to the one that ends at `stop`, made if need be; None if there is no room.

        Without a snapshot to put there, one that goes on after `stop` will do.
        """
        while node.end < stop:
            child = node.children.get(tokens[node.end])
            if child is None:
                child = self._grow(node, tokens, min(stop, node.end + RUN), cache)
            else:
                shared = min(common_prefix(child.run, tokens, node.end), stop - node.end)
                cut = shared < len(child.run) and (snapshot is not None or node.end + shared < stop)
                if not self._load(child, resume=cut):
                    node = node.partition.root  # with the child, those above it may have gone
                    continue
                if cut:
                    child = self._split(child, shared)
            if not self._settle(child):
                return None
            node = child
        if snapshot is not None and not node.resumable:
            self._filed.drop(node)
            node.snapshot, node.resumable = snapshot, True
            self._account(node, snapshot.nbytes)
        self._filed.touch(node)
        return node if self._settle(node) else None

    def _grow(self, node: Node, tokens: Sequence[int], end: int, cache: list[Any]) -> Node:
        run = array("I", tokens[node.end : end])
        child = Node(node.partition, node, run, end, self._layout.cut(cache, node.end, end))
        node.children[run[0]] = child
        self._partitions[node.partition.owner] = node.partition
        node.partition.order[child] = None
        self._account(child, child.nbytes)
        return child

    def _split(self, node: Node, at: int) -> Node:
        self._filed.drop(node)
        upper = node.split(at)
        upper.partition.order[upper] = None
        self._touch(upper)
        return upper

    def _touch(self, node: Node) -> None:
        """`node` and all above it are used now."""
        self._clock += 1
        for above in node.up():
            above.used = self._clock
            if above.slices is not None:
                above.partition.order.move_to_end(above)

    def _settle(self, node: Node) -> bool:
        """Use `node` and make room; whether it is still in memory after that."""
        self._touch(node)
        self.shrink(self._capacity)
        return node.parent is None or node.slices is not None

    def _account(self, node: Node, nbytes: int) -> None:
        node.partition.nbytes += nbytes
        self.nbytes += nbytes

    # Eviction

    def _thin(self, node: Node) -> None:
        """Drop a snapshot from memory; with a second tier it can still be read."""
        self._write(node)
        self._account(node, -node.snapshot_nbytes)
        node.snapshot, node.resumable = None, node.file is not None

    def _evict(self, leaf: Node) -> None:
        self._write(leaf)
        if leaf.file is None:
            self._remove(leaf)
        else:
            self._release(leaf)

    def _release(self, node: Node) -> None:
        """Out of memory, but still in the tree."""
        if node.slices is not None:
            self._account(node, -node.nbytes)
            node.partition.order.pop(node, None)
            node.slices = node.snapshot = None

    def _remove(self, node: Node) -> None:
        """Out of the tree, with all below it, and with those above it that have become useless by that."""
        for below in node.down():
            self._release(below)
            self._filed.drop(below)
        while (parent := node.parent) is not None:
            parent.children.pop(node.run[0], None)  # it may have gone with those below it
            if parent.children or parent.parent is None or not self._layout.whole or parent.resumable:
                break
            self._release(parent)
            self._filed.drop(parent)
            node = parent
        if not node.partition.root.children:
            self._partitions.pop(node.partition.owner, None)

    # Disk

    def _bring(self, node: Node, *, resume: bool) -> bool:
        """`_load`, and make room for it; False also where there is none."""
        if not (self._load(node, resume=resume) and self._settle(node)):
            return False
        return node.snapshot is not None or not (resume and self._layout.whole)

    def _is_here(self, node: Node, *, resume: bool) -> bool:
        """Whether a node is in memory, and with `resume` its snapshot, if it has one."""
        return node.slices is not None and not (resume and node.resumable and node.snapshot is None)

    def _load(self, node: Node, *, resume: bool) -> bool:
        """Have a node in memory, and with `resume` its snapshot; those above it are there.

        False if it cannot be read; then it is removed.
        """
        if self._is_here(node, resume=resume):
            return True
        try:
            slices, snapshot = self._filed.read(node)
        except ValueError as error:
            logger.warning("ignoring the kept prefix %s: %s", node.file, error)
            self._remove(node)
            return False
        self._account(node, -node.nbytes)
        node.slices, node.snapshot = node.slices or slices, snapshot if resume else node.snapshot
        self._account(node, node.nbytes)
        node.partition.order[node] = None
        return True

    def _write(self, node: Node) -> None:
        self._filed.write(node)
        self._forget()

    def _forget(self) -> None:
        """Delete the least recently used files where there are too many bytes, with what is useless without them."""
        for node in self._filed.excess():
            if node.slices is None or (self._layout.whole and not node.resumable and not node.children):
                self._remove(node)
