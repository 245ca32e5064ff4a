from __future__ import annotations

import json
import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Timer
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache

from openai_gateway.worker import prefixes as module
from openai_gateway.worker import spill as disk
from openai_gateway.worker.prefixes import Prefixes
from openai_gateway.worker.spill import Record, Spill, digest
from tests.worker.test_prefixes import PLENTY, Reader, contents, fill, keep, nodes, prompt, sliced, windowed

SHAPES = ["llama", "gpt_oss", "qwen3_next", "quantized"]


def spilling(folder: Path, make_cache: Callable[[], list[Any]], capacity: int, disk: int = PLENTY) -> Prefixes:
    end_in_peace()
    SPILLS.append(Spill(folder, disk, "this model"))
    return Prefixes(make_cache, capacity=capacity, spill=SPILLS[-1])


SPILLS: list[Spill] = []


def end_in_peace() -> None:
    while SPILLS:
        SPILLS.pop().close()


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    yield
    end_in_peace()


def files(folder: Path) -> list[Path]:
    for spill in SPILLS:
        spill.wait()
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_after_a_prefix_from_disk_is_that_of_a_cold_run(tmp_path: Path, shape: str) -> None:
    reader = Reader(shape)
    prefixes = spilling(tmp_path, reader.make_cache, PLENTY)
    kept = prompt(1, 40)
    reader.keep(prefixes, kept)
    prefixes.shrink(0)
    assert prefixes.nbytes == 0
    for _ in range(2):
        for shared in (40, 24, 19):
            tokens = kept[:shared] + prompt(shared, 9)
            found = prefixes.find("me", tokens)
            assert found.length == (16 if shared == 19 and shape in ("gpt_oss", "qwen3_next") else shared)
            assert reader.answer(tokens[found.length :], found.cache) == reader.answer(tokens)
        assert prefixes.nbytes > 0
        prefixes.shrink(0)
        prefixes = spilling(tmp_path, reader.make_cache, PLENTY)


def test_a_prefix_that_came_back_is_in_memory_again(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY)
    keep(prefixes, sliced, "me", [1, 2, 3, 4])
    kept = prefixes.nbytes
    prefixes.shrink(0)
    assert prefixes.covered("me", [1, 2, 3, 4]) == 3
    assert prefixes.nbytes == 0
    prefixes.find("me", [1, 2, 3, 4])
    assert prefixes.nbytes == kept
    (file,) = files(tmp_path)
    before = file.stat().st_ino
    prefixes.shrink(0)
    assert [path.stat().st_ino for path in files(tmp_path)] == [before]  # it was not written again


def test_what_is_in_memory_is_written_in_idle_moments(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY)
    keep(prefixes, sliced, "me", [1, 2, 3])
    keep(prefixes, sliced, "me", [1, 2, 3, 4, 5])
    keep(prefixes, sliced, "me", [1, 2, 7])
    steps = 0
    while prefixes.flush(1):
        steps += 1
    assert steps == len(files(tmp_path)) == 4
    again = spilling(tmp_path, sliced, PLENTY)
    assert [again.covered("me", tokens) for tokens in ([1, 2, 3, 4, 5, 6], [1, 2, 7, 8], [1, 2, 9])] == [5, 3, 2]
    assert not again.flush()


def test_writing_ahead_displaces_nothing(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, lambda: [KVCache()], PLENTY, disk=320_000)
    for first in range(9):
        tokens = [first] * 10
        prefixes.keep("me", tokens, fill(sliced(), tokens, width=1000), {})  # 80 kB
    while prefixes.flush(1):
        pass
    names = files(tmp_path)
    assert len(names) == 3
    assert not prefixes.flush()
    assert files(tmp_path) == names


def test_the_least_recently_used_files_go_first_also_after_a_restart(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY)
    for first in (1, 2, 3):
        tokens = [first] * 10
        prefixes.keep("me", tokens, fill(sliced(), tokens, width=1000), {})
    prefixes.shrink(0)
    prefixes.find("me", [1, 1])
    again = spilling(tmp_path, sliced, PLENTY, disk=200_000)
    assert [again.covered("me", [first] * 11) for first in (1, 2, 3)] == [10, 0, 10]
    assert len(files(tmp_path)) == 2
    tokens = [4] * 10
    again.keep("me", tokens, fill(sliced(), tokens, width=1000), {})
    again.shrink(0)
    assert [again.covered("me", [first] * 11) for first in (1, 3, 4)] == [10, 0, 10]
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 200_000


def test_the_least_recently_used_files_go_first_while_running(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY, disk=200_000)
    for first in (1, 2, 3):
        tokens = [first] * 10
        prefixes.keep("me", tokens, fill(sliced(), tokens, width=1000), {})
        prefixes.shrink(0)
        prefixes.find("me", [1, 1])
        prefixes.shrink(0)
    assert [prefixes.covered("me", [first] * 11) for first in (1, 2, 3)] == [10, 0, 10]


def test_a_file_larger_than_the_folder_may_be_is_not_written(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY, disk=10_000)
    prefixes.keep("me", [1] * 10, fill(sliced(), [1] * 10, width=1000), {})
    prefixes.shrink(0)
    assert not files(tmp_path)
    assert prefixes.covered("me", [1] * 10) == 0


def damage_nothing_at_all(path: Path) -> None:
    path.unlink()


def damage_data(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 40)


def damage_length(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def damage_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [damage_nothing_at_all, damage_data, damage_header, damage_length, damage_by_emptying]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("restart", [False, True])
def test_a_damaged_file_costs_only_what_was_in_it(
    tmp_path: Path, damage: Callable[[Path], None], restart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    prefixes = spilling(tmp_path, windowed, PLENTY)
    keep(prefixes, windowed, "me", [1, 2, 3, 4, 5, 6, 7, 8, 9], 3, 6, 9)
    prefixes.flush()  # written from the front to the end
    prefixes.shrink(0)
    victim = next(path for path in files(tmp_path) if b'"start":"3"' in path.read_bytes())
    damage(victim)
    if restart:
        prefixes = spilling(tmp_path, windowed, PLENTY)
    found = prefixes.find("me", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert found.length == found.diverged_at == 3
    assert found.cache is not None
    assert contents(found.cache) == contents(fill(windowed(), [1, 2, 3]))
    assert len(files(tmp_path)) == 1
    assert (victim.name in caplog.text) != (restart and damage is damage_nothing_at_all)


def test_a_damaged_first_file_leaves_nothing(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY)
    keep(prefixes, sliced, "me", [1, 2, 3])
    keep(prefixes, sliced, "me", [1, 2, 3, 4])
    prefixes.shrink(0)
    damage_data(next(path for path in files(tmp_path) if b'"start":"0"' in path.read_bytes()))
    found = prefixes.find("me", [1, 2, 3, 4, 5])
    assert (found.length, found.diverged_at, found.cache) == (0, None, None)
    assert not files(tmp_path)
    assert not prefixes._partitions


def test_a_lost_file_takes_nothing_with_it_that_is_kept_afterwards(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, windowed, PLENTY)
    with patch.object(module, "RUN", 4):
        keep(prefixes, windowed, "me", [1, 2, 3, 4, 5, 6, 7, 8], 8)
        prefixes.shrink(prefixes.nbytes - 1)
        (file,) = files(tmp_path)  # of the second run; without it the first is of no use
        file.unlink()
        keep(prefixes, windowed, "me", [1, 2, 3, 4, 5, 6, 9, 9], 8)
    assert prefixes.find("me", [1, 2, 3, 4, 5, 6, 9, 9, 9]).length == 8
    consistent(prefixes, tmp_path, PLENTY, PLENTY)
    prefixes.shrink(0)
    assert prefixes.nbytes == 0


def test_no_prefix_is_entered_without_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read from its file, which has to make room for another; and goes from memory, and cannot be written."""
    prefixes = spilling(tmp_path, windowed, PLENTY)
    keep(prefixes, windowed, "me", [7], 1)
    keep(prefixes, windowed, "me", [1, 1, 1, 1, 2, 3, 4], 4, 5, 6, 7)
    entered = next(node for node in nodes(prefixes) if node.end == 5)
    prefixes._thin(entered)
    assert entered.snapshot is None
    assert [path.name for path in files(tmp_path)] == [entered.file]
    prefixes._capacity = prefixes.nbytes
    SPILLS[0]._capacity = SPILLS[0].nbytes + 10
    write, refused = Spill.write, iter([False, True])
    monkeypatch.setattr(Spill, "write", lambda spill, *what: None if next(refused) else write(spill, *what))
    found = prefixes.find("me", [1, 1, 1, 1, 2, 9, 9])
    assert not [*refused]
    assert found.length == 4
    assert contents(found.cache or []) == contents(fill(windowed(), [1, 1, 1, 1]))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[malloc] Unable to allocate 80000 bytes.")])
def test_what_there_is_no_memory_to_copy_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def without_memory(_: mx.array) -> disk.Tensor:
        raise error

    prefixes = spilling(tmp_path, sliced, PLENTY, disk=200_000)
    for first in (1, 2, 3, 4):
        tokens = [first] * 10
        prefixes.keep("me", tokens, fill(sliced(), tokens, width=1000), {})
        with monkeypatch.context() as context:
            if first == 1:
                context.setattr(disk, "_tensor", without_memory)
            prefixes.shrink(0)
        assert prefixes.nbytes == 0
        assert len(SPILLS[0]._sizes) == len(files(tmp_path)) == min(2, first - 1)
    assert not SPILLS[0]._unwritten
    assert [prefixes.covered("me", [first] * 11) for first in (1, 2, 3, 4)] == [0, 0, 10, 10]


def test_foreign_files_are_told_from_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY)
    keep(prefixes, sliced, "me", [1, 2, 3])
    prefixes.shrink(0)
    (ours,) = files(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not of our making")
    (tmp_path / "notes.txt").write_text("neither")
    left_over = tmp_path / ours.name.replace(".", ".part.")
    left_over.write_bytes(b"half a file")
    renamed = tmp_path / f"{'0' * 32}.safetensors"
    renamed.write_bytes(ours.read_bytes())
    for text in (
        "[]",
        '"x"',
        "{}",
        '{"__metadata__": {}}',
        '{"__metadata__": {"format": 1}, "a": {"data_offsets": []}}',
    ):
        odd = tmp_path / f"{digest([text.encode()])}.safetensors"
        odd.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    again = spilling(tmp_path, sliced, PLENTY)
    assert again.covered("me", [1, 2, 3, 4]) == 3
    assert {path.name for path in files(tmp_path)} == {ours.name, "model.safetensors", "notes.txt"}
    assert left_over.name in caplog.text
    assert renamed.name in caplog.text


def test_two_of_one_model_leave_each_others_files_alone(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path / "kept", sliced, PLENTY)
    keep(prefixes, sliced, "me", [1, 2, 3])
    keep(prefixes, sliced, "me", [1, 2, 3, 4, 5])
    prefixes.shrink(prefixes.nbytes - 1)
    (file,) = files(tmp_path / "kept")  # what goes before it is in memory
    other = Spill(tmp_path / "kept", PLENTY, "this model")
    assert other.folder == tmp_path / "kept-2"
    assert Prefixes(sliced, capacity=PLENTY, spill=other).covered("me", [1, 2, 3, 4, 5]) == 0
    assert file.exists()
    assert prefixes.find("me", [1, 2, 3, 4, 5, 6]).length == 5
    end_in_peace()
    assert Spill(tmp_path / "kept", PLENTY, "this model").folder == tmp_path / "kept"


def test_the_folder_of_a_process_that_died_is_anybodys(tmp_path: Path) -> None:
    code = "import sys, pathlib; from openai_gateway.worker.spill import Spill\n"
    code += "print(Spill(pathlib.Path(sys.argv[1]), 1000, 'this model').folder, flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "kept")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{tmp_path / 'kept'}\n"
        with closing(Spill(tmp_path / "kept", 1000, "this model")) as meanwhile:
            assert meanwhile.folder == tmp_path / "kept-2"
        process.kill()
    assert Spill(tmp_path / "kept", 1000, "this model").folder == tmp_path / "kept"


def test_without_locks_the_folder_is_used_as_if_it_were_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: int) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert Spill(tmp_path, PLENTY, "this model").folder == tmp_path
    assert "No locks available" in caplog.text


def test_files_of_another_model_are_deleted(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY)
    keep(prefixes, sliced, "me", [1, 2, 3])
    prefixes.shrink(0)
    assert len(files(tmp_path)) == 1
    end_in_peace()
    other = Prefixes(sliced, capacity=PLENTY, spill=Spill(tmp_path, PLENTY, "another model"))
    assert other.covered("me", [1, 2, 3, 4]) == 0
    assert not files(tmp_path)


def test_files_of_other_layers_under_the_same_fingerprint_are_not_used(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY)
    keep(prefixes, sliced, "me", [1, 2, 3])
    prefixes.shrink(0)
    again = spilling(tmp_path, list, PLENTY)
    assert not again.supported
    again = spilling(tmp_path, windowed, PLENTY)
    assert again.find("me", [1, 2, 3, 4]).length == 0


def test_a_file_names_no_owner_and_is_for_nobody_else(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path / "kept", sliced, PLENTY)
    keep(prefixes, sliced, "sk-secret", [1, 2, 3])
    prefixes.shrink(0)
    (file,) = files(tmp_path / "kept")
    assert b"sk-secret" not in file.read_bytes()
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
    again = spilling(tmp_path / "kept", sliced, PLENTY)
    assert again.covered("sk-other", [1, 2, 3, 4]) == 0
    assert again.covered("sk-secret", [1, 2, 3, 4]) == 3


def test_a_full_disk_is_said_once_and_nothing_else_happens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:9])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for first in (1, 2, 3):
        keep(prefixes, sliced, "me", [first] * 5)
        prefixes.shrink(0)
        assert prefixes.find("me", [first] * 6).length == 0
        assert prefixes.covered("me", [first] * 6) == 0
    assert caplog.text.count("No space left") == 1
    assert not files(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", write)
    keep(prefixes, sliced, "me", [4] * 5)
    prefixes.shrink(0)
    assert prefixes.covered("me", [4] * 6) == 5


def test_a_run_that_is_split_or_grows_a_snapshot_is_written_anew(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, windowed, PLENTY)
    keep(prefixes, windowed, "me", [1, 2, 3, 4, 5, 6], 6)
    prefixes.flush()
    assert len(files(tmp_path)) == 1
    keep(prefixes, windowed, "me", [1, 2, 3, 9], 4)
    keep(prefixes, windowed, "me", [1, 2, 3], 3)
    prefixes.flush()
    again = spilling(tmp_path, windowed, PLENTY)
    for tokens, length in (([1, 2, 3, 4, 5, 6, 7], 6), ([1, 2, 3, 9, 9], 4), ([1, 2, 3, 8], 3)):
        found = again.find("me", tokens)
        assert found.length == length
        assert contents(found.cache or []) == contents(fill(windowed(), tokens[:length]))


def test_a_run_on_disk_is_split_like_one_in_memory(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, PLENTY)
    keep(prefixes, sliced, "me", [1, 2, 3, 4, 5])
    prefixes.shrink(0)
    keep(prefixes, sliced, "me", [1, 2, 3, 8, 9])
    prefixes.shrink(0)
    for tokens in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 8, 9, 9]):
        found = prefixes.find("me", tokens)
        assert contents(found.cache or []) == contents(fill(sliced(), tokens[:5]))


def test_without_memory_there_is_no_disk_either(tmp_path: Path) -> None:
    prefixes = spilling(tmp_path, sliced, 0)
    keep(prefixes, sliced, "me", [1, 2, 3])
    assert not prefixes.flush()
    assert not files(tmp_path)


def test_what_is_not_written_yet_is_found_and_can_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = Event()
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: goes_on.wait(30) and write(path, data))
    spill = Spill(tmp_path, PLENTY, "this model")
    records = [Record("owner", "", 0, array("I", [token]), False) for token in (1, 2)]
    wanted, unwanted = [spill.write(record, {"run.0.0": mx.ones((1, 2, 1, 3))}) for record in records]
    assert wanted is not None and unwanted is not None
    spill.touch(wanted)
    spill.delete(unwanted)
    Timer(0.05, goes_on.set).start()
    assert spill.read(wanted)["run.0.0"].tolist() == mx.ones((1, 2, 1, 3)).tolist()
    spill.wait()
    later = spill.write(records[1], {"run.0.0": mx.ones((1, 2, 1, 3))})
    spill.wait()
    assert {path.name for path in tmp_path.iterdir()} == {wanted, later}


def test_more_than_may_wait_to_be_written_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MOST_UNWRITTEN", 100)
    spill = Spill(tmp_path, PLENTY, "this model")
    assert spill.write(Record("owner", "", 0, array("I", [1]), False), {"run.0.0": mx.ones((1, 1, 1, 26))}) is None
    assert spill.write(Record("owner", "", 0, array("I", [1]), False), {"run.0.0": mx.ones((1, 1, 1, 25))})


def test_what_a_record_says_comes_back(tmp_path: Path) -> None:
    spill = Spill(tmp_path, PLENTY, "this model")
    record = Record("owner", digest([array("I", [7])]), 1, array("I", [0, 2**32 - 1]), True)
    arrays = {
        "run.0.0": mx.ones((1, 2, 2, 3), mx.bfloat16),
        "run.0.1": mx.zeros((1, 2, 2, 0)),
        "state.0.0": mx.array(3),
    }
    name = spill.write(record, arrays)
    assert name is not None
    spill.close()
    assert spill.nbytes == (tmp_path / name).stat().st_size
    again = Spill(tmp_path, PLENTY, "this model")
    assert again.scan() == {name: record}
    assert again.nbytes == (tmp_path / name).stat().st_size
    read = again.read(name)
    assert read is not None
    assert {key: (x.dtype, x.tolist()) for key, x in read.items()} == {
        key: (x.dtype, x.tolist()) for key, x in arrays.items()
    }
    length = int.from_bytes((tmp_path / name).read_bytes()[:8], "little")
    assert json.loads((tmp_path / name).read_bytes()[8 : 8 + length])["__metadata__"]["fingerprint"] == "this model"


USES = st.lists(
    st.tuples(
        st.sampled_from(["keep", "find", "shrink", "flush", "lose", "restart"]),
        st.sampled_from(["a", "b"]),
        st.lists(st.integers(0, 2), min_size=1, max_size=12),
        st.sets(st.integers(1, 12)),
    ),
    max_size=14,
)


@given(uses=USES, capacity=st.integers(1, 1500), disk=st.sampled_from([3000, 8000, PLENTY]))
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("make_cache", [sliced, windowed])
def test_whatever_happens_what_is_found_is_right(
    tmp_path_factory: pytest.TempPathFactory,
    make_cache: Callable[[], list[Any]],
    uses: list[tuple[str, str, list[int], set[int]]],
    capacity: int,
    disk: int,
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    prefixes, lost = spilling(folder, make_cache, capacity, disk), False
    with patch.object(module, "RUN", 3):
        for action, owner, tokens, stops in uses:
            if action == "keep":
                keep(prefixes, make_cache, owner, tokens, *(n for n in stops if n <= len(tokens)))
            elif action == "find":
                covered = prefixes.covered(owner, tokens)
                found = prefixes.find(owner, tokens)
                assert found.length == covered or (found.length < covered and (lost or capacity < 1000))
                if found.cache is not None:
                    assert contents(found.cache) == contents(fill(make_cache(), tokens[: found.length]))
            elif action == "shrink":
                prefixes.shrink(0)
                assert prefixes.nbytes == 0
            elif action == "flush":
                prefixes.flush()
            elif action == "lose":
                lost |= lose(folder, stops)
            else:
                prefixes, lost = spilling(folder, make_cache, capacity, disk), False
            consistent(prefixes, folder, capacity, disk, lost=lost)


def lose(folder: Path, places: set[int]) -> bool:
    """Delete files behind the back of who wrote them; whether there were any."""
    lost = [path for place, path in enumerate(files(folder), 1) if place in places]
    for path in lost:
        path.unlink()
    return bool(lost)


def consistent(prefixes: Prefixes, folder: Path, capacity: int, disk: int, *, lost: bool = False) -> None:
    kept = nodes(prefixes)
    assert prefixes.nbytes == sum(node.nbytes for node in kept) <= capacity
    on_disk = {node.file for node in kept if node.file is not None}
    assert on_disk == set(prefixes._filed.nodes)
    there = {path.name for path in files(folder)}
    assert there <= on_disk if lost else there == on_disk
    assert sum(path.stat().st_size for path in files(folder)) <= disk
    for node in kept:
        assert node.slices is not None or node.file is not None
        assert node.parent is node.partition.root or node.slices is None or node.parent.slices is not None  # type: ignore[union-attr]
    for partition in prefixes._partitions.values():
        assert partition.root.children
        ends = {node: place for place, node in enumerate(partition.order)}
        assert all(ends[node.parent] > place for node, place in ends.items() if node.parent in ends)
