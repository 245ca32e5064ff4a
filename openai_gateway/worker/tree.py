"""A radix tree over runs of tokens; its nodes hold what the model computed for exactly their run."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from openai_gateway.worker.snapshots import Slices, Snapshot, divide, nbytes
from openai_gateway.worker.spill import Record, digest


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens that ends `end` tokens from the root.

    `slices` is None for the root, and for a node that is on disk only, as then are all below it. `resumable`: the
    model's windows and recurrent layers are known for the end of the run: `snapshot`, or in the file.
    """

    partition: Partition
    parent: Node | None
    run: array[int]
    end: int
    slices: Slices | None = None
    snapshot: Snapshot | None = None
    resumable: bool = False
    file: str | None = None
    used: int = 0
    children: dict[int, Node] = field(default_factory=dict)

    @property
    def start(self) -> int:
        return self.end - len(self.run)

    @property
    def slices_nbytes(self) -> int:
        """Bytes in memory of tokens, keys and values."""
        return 0 if self.slices is None else len(self.run) * self.run.itemsize + nbytes(self.slices)

    @property
    def snapshot_nbytes(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.slices_nbytes + self.snapshot_nbytes

    def up(self) -> Iterator[Node]:
        """This node and those above it, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def down(self) -> Iterator[Node]:
        """This node and all below it."""
        left = [self]
        while left:
            yield (node := left.pop())
            left += node.children.values()

    def path_digest(self) -> str:
        """The digest of all tokens from the root to the end of the run."""
        return digest(node.run for node in reversed([*self.up()]))

    def split(self, at: int) -> Node:
        """Cut the run after `at` tokens: this node keeps the end of it, a new one above it has the front."""
        if self.parent is None or self.slices is None:
            raise ValueError("only a node that is in memory can be split")
        front, back = divide(self.slices, at)
        upper = Node(self.partition, self.parent, self.run[:at], self.start + at, front, children={self.run[at]: self})
        self.parent.children[self.run[0]] = upper
        self.run, self.slices, self.parent = self.run[at:], back, upper
        return upper


class Partition:
    """What is kept for one owner. `order`: its nodes in memory, the least recently used first."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.nbytes = 0
        self.order: OrderedDict[Node, None] = OrderedDict()
        self.root = Node(self, None, array("I"), 0)


def match(root: Node, tokens: Sequence[int]) -> tuple[list[Node], int]:
    """The nodes that `tokens` run through, the last one perhaps in part only, and how many tokens agree."""
    path: list[Node] = []
    node, at = root, 0
    while at == node.end and at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
        path.append(node := child)
        at += common_prefix(child.run, tokens, at)
    return path, at


def chain(records: Mapping[str, Record], partitions: dict[str, Partition]) -> dict[str, Node]:
    """Make nodes of files again, in the owners' trees; those by file name that have all before them."""
    nodes: dict[str, Node] = {}
    tips: dict[tuple[str, str], Node] = {}
    for name, record in sorted(records.items(), key=lambda item: item[1].start):
        if record.start == 0:
            partition = partitions.setdefault(record.owner, Partition(record.owner))
            tips[record.owner, record.before] = partition.root
        parent = tips.get((record.owner, record.before))
        if parent is None or record.run[0] in parent.children:
            continue
        node = Node(parent.partition, parent, record.run, parent.end + len(record.run), resumable=record.snapshot)
        node.file = name
        parent.children[record.run[0]] = nodes[name] = node
        tips[record.owner, node.path_digest()] = node
    return nodes


def crowded_snapshot(leaf: Node) -> Node | None:
    """The node whose snapshot is to go before `leaf` does; None if there are not too many.

    Recurrent states can be larger than all keys and values. Where they are, the one closest to its neighbours goes
    first, but never the last one, nor one above a fork.
    """
    tail: list[Node] = []
    for node in leaf.up():
        if len(node.children) > 1:
            break
        tail.append(node)
    held = [node for node in tail if node.snapshot is not None]
    if len(held) < 2 or sum(n.snapshot_nbytes for n in tail) <= sum(n.slices_nbytes for n in tail):
        return None
    ends = [node.end for node in held] + [tail[-1].start]
    return min((ends[n - 1] - ends[n + 1], held[n].end, held[n]) for n in range(1, len(held)))[2]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two prompts have in common."""
    return common_prefix(array("I", one[: len(other)]), other, 0)


def common_prefix(run: array[int], tokens: Sequence[int], at: int) -> int:
    """How many tokens of `run` stand in `tokens` from `at` on: by bisection, comparing whole arrays."""
    other = array("I", tokens[at : at + len(run)])
    if run == other:
        return len(run)
    low, high = 0, min(len(run), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if run[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
