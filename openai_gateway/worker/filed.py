"""Which nodes of the prefix cache's tree are on disk as well: they are written, read and forgotten here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from openai_gateway.worker.snapshots import Layout, Slices, Snapshot
from openai_gateway.worker.spill import Record, Spill
from openai_gateway.worker.tree import Node, Partition, chain

logger = logging.getLogger(__name__)


class Filed:
    """The files of nodes, in `spill`; without one nothing is ever written. What nodes hold in memory is not its own."""

    def __init__(self, layout: Layout, spill: Spill | None) -> None:
        self.nodes: dict[str, Node] = {}
        """By the names of their files."""
        self._layout = layout
        self._spill = spill

    def restore(self, partitions: dict[str, Partition]) -> list[Node]:
        """Put what is on disk into the owners' trees, the least recently used first.

        Files without those before them are deleted.
        """
        if self._spill is None:
            return []
        records = self._spill.scan()
        self.nodes = chain(records, partitions)
        for name in records.keys() - self.nodes.keys():
            self._spill.delete(name)
        logger.info("found %d of %d kept runs of tokens usable on disk", len(self.nodes), len(records))
        return [self.nodes[name] for name in records if name in self.nodes]

    def read(self, node: Node) -> tuple[Slices, Snapshot | None]:
        """What the node's file holds. ValueError if that cannot be read."""
        if self._spill is None or node.file is None:
            raise ValueError("there is no file of it")
        length = node.end if node.resumable else None
        return self._layout.parse(self._spill.read(node.file), len(node.run), length)

    def write(self, node: Node) -> bool:
        """Write a node that is in memory, unless it is on disk already; whether that was begun."""
        if self._spill is None or node.file is not None:
            return False
        before = node.parent or node.partition.root
        record = Record(node.partition.owner, before.path_digest(), node.start, node.run, node.resumable)
        node.file = self._spill.write(record, self._layout.named(node.slices or (), node.snapshot))
        if node.file is not None:
            self.nodes[node.file] = node
            self.touch(node)
        return node.file is not None

    def write_ahead(self, nodes: Iterable[Node], most: int | None) -> bool:
        """Write some of these nodes that are in memory, the most recently used first, as long as they displace nothing.

        Whether any was written.
        """
        if self._spill is None:
            return False
        # Of equally recent ones those further up: without them the others are of no use.
        unwritten = sorted((node for node in nodes if node.file is None), key=lambda node: (-node.used, node.end))
        return any([self._spill.has_room(node.nbytes) and self.write(node) for node in unwritten[:most]])

    def touch(self, node: Node) -> None:
        """The files of `node` and of all above it are used now."""
        if self._spill is not None:
            for above in node.up():
                if above.file is not None:
                    self._spill.touch(above.file)

    def excess(self) -> Iterator[Node]:
        """Nodes whose files had to go since there are too many bytes, the least recently used first."""
        while self._spill is not None and (name := self._spill.excess()) is not None:
            node = self.nodes[name]
            self.drop(node)
            yield node

    def drop(self, node: Node) -> None:
        """Delete the node's file, if there is one."""
        if self._spill is not None and node.file is not None:
            self._spill.delete(node.file)
            del self.nodes[node.file]
            node.file = None
            node.resumable = node.snapshot is not None
