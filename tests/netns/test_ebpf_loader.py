"""Maps, programs and their places at links, with small programs that a test compiles."""

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.model.errors import HostError
from featherlb.system import bpffs, ebpf, programs, rtnetlink, tc
from featherlb.system.ebpf import Map, MapFlag, MapKind, Program, Update
from featherlb.system.elements import Elements
from featherlb.system.elf import MapShape, ObjectFile, parse
from featherlb.system.ring import Ring

pytestmark = [
    pytest.mark.no_packets("the loader alone, without a worker"),
    pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang"),
]

COUNTING = """
#include "kernel.h"

MAP(counts) = { MAP_ARRAY, sizeof(u32), sizeof(u64), 4, MMAPABLE };
MAP(lengths) = { MAP_RINGBUF, 0, 0, 4096, 0 };
MAP(seen) = { MAP_PERCPU_ARRAY, sizeof(u32), sizeof(u32), 1, 0 };
char _license[] SEC("license") = "GPL";

NOINLINE int twice(int number)
{
	return 2 * number;
}

NOINLINE int more(int number)
{
	return twice(number) + 1;
}

NOINLINE void count(u32 which)
{
	u64 *found = map_lookup_elem(&counts, &which);

	if (found)
		__sync_fetch_and_add(found, 1);
}

SEC("tc/first")
int first(struct __sk_buff *skb)
{
	u32 length = skb->len, zero = 0, *cpu = map_lookup_elem(&seen, &zero);

	if (cpu)
		(*cpu)++;
	ringbuf_output(&lengths, &length, sizeof(length), 0);
	count(1);
	return more(3);
}

SEC("xdp")
int early(void *context)
{
	return 2;
}

SEC("tc/second")
int second(struct __sk_buff *skb)
{
	count(2);
	return TC_ACT_UNSPEC;
}
"""
WRONG = """
#include "kernel.h"
char _license[] SEC("license") = "GPL";

SEC("tc")
int wild(struct __sk_buff *skb)
{
	return *(u32 *)(long)skb->data;
}
"""
CALLING = """
#include "kernel.h"
int number;

SEC("tc")
int variable(struct __sk_buff *skb)
{
	return number++;
}
"""


def compiled(source: str, directory: Path) -> ObjectFile:
    (directory / "program.c").write_text(source)
    options = ["-target", "bpf", "-mcpu=v3", "-O2", f"-I{ebpf.OBJECTS}", "-Wall", "-Werror"]
    command = ["clang", *options, "-c", "program.c", "-o", "program.o"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return parse((directory / "program.o").read_bytes())


class Loaded:
    def __init__(self, file: ObjectFile) -> None:
        self.maps = {name: ebpf.create_map(shape, name) for name, shape in file.maps.items()}
        self.programs = ebpf.load(file, self.maps)

    def count(self, which: int) -> int:
        value = self.maps["counts"].look_up(struct.pack("=I", which))
        assert value is not None
        return int.from_bytes(value, "little")

    def close(self) -> None:
        for one in (*self.maps.values(), *self.programs.values()):
            one.close()


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    loaded = Loaded(compiled(COUNTING, tmp_path_factory.mktemp("counting")))
    yield loaded
    loaded.close()


@pytest.fixture
def new_map() -> Iterator[Callable[..., Map]]:
    made: list[Map] = []

    def make(kind: MapKind, entries: int, flags: int = 0, inner: Map | None = None) -> Map:
        made.append(ebpf.create_map(MapShape(kind, 4, 4, entries, flags), "test", inner))
        return made[-1]

    yield make
    for one in made:
        one.close()


def words(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}I", *numbers)


def test_the_programs_of_featherlb_compile_without_a_warning() -> None:
    for source in sorted(ebpf.OBJECTS.glob("*.c")):
        options = ["-target", "bpf", "-mcpu=v3", "-O2", "-Wall", "-Wextra", "-Werror"]
        command = ["clang", *options, "-c", str(source), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_program_runs_on_a_packet(counting: Loaded) -> None:
    before = counting.count(1)
    cpus = ebpf.possible_cpus()
    ran = counting.programs["first"].run(bytes(60), repeat=3)
    assert (ran.result, ran.packet, counting.count(1)) == (7, bytes(60), before + 3)
    seen = counting.maps["seen"].look_up(words(0))
    assert seen is not None
    assert sum(struct.unpack(f"={2 * cpus}I", seen)) >= 3


def test_a_ring_has_what_a_program_wrote_after_the_last_reading(counting: Loaded) -> None:
    ring = Ring(counting.maps["lengths"])
    ring.read()
    # More than it has room for in all, so it wraps; the kernel's own shortest packet is 14 bytes.
    for round in range(20):
        lengths = [60 + round + number for number in range(20)]
        for length in lengths:
            counting.programs["first"].run(bytes(length))
        for length in lengths[:5]:
            at = ring.next()
            assert bytes(ring.memory[at : at + ring.length]) == words(length)
        ring.free()
        assert ring.read() == [words(length) for length in lengths[5:]]
        assert ring.read() == []
        assert ring.next() == -1


def test_shared_memory_is_what_programs_see(counting: Loaded) -> None:
    memory = counting.maps["counts"].memory()
    memory[8:16] = (41).to_bytes(8, "little")
    counting.programs["first"].run(bytes(60))
    assert int.from_bytes(memory[8:16], "little") == 42
    memory.close()


def test_keys_come_and_go(new_map: Callable[..., Map]) -> None:
    table = new_map(MapKind.HASH, 4, MapFlag.NO_PREALLOC)
    assert table.look_up(words(1)) is None
    table.update(words(1), words(10))
    table.update(words(1), words(11))
    assert table.look_up(words(1)) == words(11)
    with pytest.raises(FileExistsError):
        table.update(words(1), words(12), Update.NEW)
    with pytest.raises(KeyError):
        table.update(words(2), words(12), Update.EXISTING)
    with pytest.raises(ValueError, match="a key of 8 bytes"):
        table.look_up(bytes(8))
    assert table.delete(words(1))
    assert not table.delete(words(1))


def test_batches(new_map: Callable[..., Map]) -> None:
    table = new_map(MapKind.HASH, 4, MapFlag.NO_PREALLOC)
    assert table.update_batch(words(1, 2, 3), words(10, 20, 30), 3) == 3
    assert dict(table.items()) == {
        words(1): words(10),
        words(2): words(20),
        words(3): words(30),
    }
    # Room for one more.
    assert table.update_batch(bytearray(words(4, 5, 6)), memoryview(words(40, 50, 60)), 3) == 1
    assert table.delete_batch(bytearray(words(7, 1, 8, 9, 3, 4, 7)), 7) == 3
    assert list(table.keys()) == [words(2)]
    # As a worker has them.
    elements = Elements(table)
    keys = memoryview(bytearray(words(2, 3, 4, 5, 6)))
    assert elements.update(keys, memoryview(array("I", range(5))), 5) == 4
    assert dict(table.items()) == {words(2 + value): words(value) for value in range(4)}
    elements.delete(memoryview(bytearray(words(7, 2, 8, 9, 5, 4, 7))), 7)
    assert list(table.keys()) == [words(3)]


def test_a_map_of_maps(new_map: Callable[..., Map]) -> None:
    inner = new_map(MapKind.ARRAY, 1)
    outer = new_map(MapKind.ARRAY_OF_MAPS, 2, inner=inner)
    outer.update(words(1), words(inner.fd))
    assert outer.look_up(words(1)) is not None
    assert outer.look_up(words(0)) is None


def test_a_refused_program_comes_with_the_verifiers_reason(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="verifier refuses the eBPF program wild") as refusal:
        ebpf.load(compiled(WRONG, tmp_path), {})
    assert "outside of the packet" in str(refusal.value)


def test_a_program_with_a_variable_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refers to number, which is neither a map"):
        compiled(CALLING, tmp_path)


def test_what_is_no_object_file_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"\x7fELF", Path("/bin/true").read_bytes()):
        with pytest.raises(ValueError, match="object file"):
            parse(data)


@pytest.mark.parametrize("name", sorted(one.stem for one in ebpf.OBJECTS.glob("*.c")))
def test_the_programs_of_featherlb_load_with_two_capabilities(name: str) -> None:
    code = f"""
from featherlb.system import ebpf, privileges
from featherlb.system.elf import MapShape
privileges.drop_capabilities((privileges.CAP_BPF, privileges.CAP_NET_ADMIN))
file = ebpf.read_object({name!r})
ring = ebpf.create_map(MapShape(ebpf.MapKind.RINGBUF, 0, 0, 4096, 0), "ring")
of_maps = ebpf.MapKind.ARRAY_OF_MAPS
maps = {{
    name: ebpf.create_map(shape, name, ring if shape.kind == of_maps else None)
    for name, shape in file.maps.items()
}}
ebpf.load(file, maps)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_program_that_was_not_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ebpf, "OBJECTS", tmp_path)
    with pytest.raises(HostError, match=r"install clang and build it again"):
        ebpf.read_object("any")


def test_pins_on_a_file_system_of_our_own(counting: Loaded, tmp_path: Path) -> None:
    directory = tmp_path / "pins"
    bpffs.mount(directory)
    try:
        bpffs.mount(directory)  # once is enough
        assert bpffs.is_mounted(directory)
        counting.maps["counts"].pin(directory / "counts")
        with pytest.raises(FileExistsError):
            counting.maps["counts"].pin(directory / "counts")
        with ebpf.open_map(directory / "counts") as again:
            assert again.shape == counting.maps["counts"].shape
            assert again.name == "counts"
            again.update(words(3), (77).to_bytes(8, "little"))
        assert counting.count(3) == 77
        with pytest.raises(FileNotFoundError):
            ebpf.open_map(directory / "others")
        # What lies above hides it.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
        assert not bpffs.is_mounted(directory)
        subprocess.run(["umount", tmp_path], check=True)
        assert bpffs.is_mounted(directory)
    finally:
        bpffs.unmount(directory)
    assert not bpffs.is_mounted(directory)
    bpffs.unmount(directory)


def test_programs_at_a_link(counting: Loaded) -> None:
    first, second = counting.programs["first"], counting.programs["second"]
    with Lab(backends=1) as lab:
        node = lab.balancer
        index = node.call(socket.if_nametoindex, next(iter(node.addresses)))

        def arrives() -> tuple[int, int]:
            """How many packets the first and the second program see when somebody pings."""
            before = counting.count(1), counting.count(2)
            lab.client.run(["ping", "-c1", "-W2", node.address], check=False)
            return counting.count(1) - before[0] > 0, counting.count(2) - before[1] > 0

        def by_link(program: Program) -> tc.Link:
            link = node.call(tc.attach, program, index)
            if link is None:
                pytest.skip("this kernel has no tcx")
            return link

        assert node.call(tc.attach_filter, second, index)
        assert not node.call(tc.attach_filter, second, index)
        assert node.call(tc.find_filter, index) == "featherlb/second"
        assert arrives() == (False, True)
        node.call(tc.detach_filter, index, 1, True)
        assert node.call(tc.find_filter, index) is None
        node.call(tc.detach_filter, index, 1, True)
        assert arrives() == (False, False)
        with by_link(second) as link:
            assert arrives() == (False, True)
            link.update(first)
            assert arrives() == (True, False)
            with by_link(second):
                assert node.call(tc.programs_at, index) == ["first", "second"]
        assert arrives() == (False, False)
        assert node.call(tc.programs_at, index) == []
        assert not node.call(tc.has_xdp, index)
        # BPF_XDP, XDP_FLAGS_SKB_MODE
        request = struct.pack("=IIII", counting.programs["early"].fd, index, 37, 2)
        with ebpf.Descriptor(node.call(ebpf.call, ebpf.Command.LINK_CREATE, request)):
            assert node.call(tc.has_xdp, index)


def test_links_without_tcx(monkeypatch: pytest.MonkeyPatch, shared_bpffs: None) -> None:
    """As on kernels before 6.6: what was attached is removed, and no more."""
    monkeypatch.setattr(tc, "attach", lambda program, index: None)
    with Lab(backends=1) as lab:
        node = lab.balancer
        links = node.call(rtnetlink.links)
        front, back = (node.call(socket.if_nametoindex, name) for name in node.addresses)
        node.run(["tc", "qdisc", "add", "dev", links[back].name, "clsact"])
        node.call(programs.install, 7, 1, 100)
        for _ in range(2):
            assert node.call(programs.attach, 7, links.values()) == []
            assert node.call(programs.attached, 7) == {front, back}
            handle = programs.handle(7)
            for index in (front, back):
                assert node.call(tc.find_filter, index, handle) == "featherlb/ingress"
            # A restart has them run its own program.
            node.call(programs.install, 7, 1, 100)
        node.call(programs.attach, 7, [links[back]])
        assert node.call(tc.find_filter, front, handle) is None
        node.call(programs.remove, 7)
        assert node.call(tc.find_filter, back, handle) is None
        assert not node.call(programs.directory, 7).exists()
        disciplines = node.run(["tc", "qdisc", "show"]).stdout
        assert re.findall(r"clsact .* dev (\w+)", disciplines) == [links[back].name]
