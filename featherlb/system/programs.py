"""The programs of an instance in the kernel: installed, attached to links, and removed.

Programs, maps and links are pinned on a BPF file system, in a directory of each instance. So they
outlive the process: the program goes on with the flows that it has, and the next instance finds
them. What is in a directory says all that there is to remove:

    NAME                a map or a program
    ring-N              the ring of worker N, an inner map of `events`
    link-INDEX          the link (tcx) to the interface with this index
    filter-INDEX        where the kernel has no tcx: a filter is there (a pin of its program)
    clsact-INDEX        and its queueing discipline was created for it
"""

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from featherlb.model.errors import HostError
from featherlb.model.route import LOOPBACK, Link
from featherlb.system import bpffs, ebpf, privileges, rtnetlink, tc
from featherlb.system.elf import MapShape, ObjectFile
from featherlb.system.journal import ROOT as STATE
from featherlb.system.journal import Journal

ROOT = STATE / "bpf"
"""Where featherlb looks for a BPF file system, and mounts one if need be."""
SHARED = Path("/sys/fs/bpf")
"""Where the machine has one, as a rule."""
OBJECT = "flows"
"""The object file: the programs and maps of the datapath ebpf."""
INGRESS, BARE = "ingress", "ingress_bare"
"""The programs: for links with Ethernet headers, and for those without."""
EVENTS = "events"
OF_WORKERS = ("services", "members", "rows", "spare", "queue")
"""Maps of which each worker has an equal part."""
ENTRIES = "entries"
LIVE = 72
"""The byte of an entry that is not 0 as long as the program carries its flow."""
PORTS, OPTIONS, PROTOCOL = 64, 74, 108
"""Where others of its fields are (`struct entry`)."""
IPV6 = 1 << 1
"""An option."""
RING_SIZE = 1 << 20
"""Bytes of a worker's ring: 43,000 changes of state, which are read every 0.1 s."""


def directory(instance: int) -> Path:
    """Where an instance's objects are pinned."""
    return _root() / Journal().directory.name / str(instance)


def _root() -> Path:
    if must_mount() or bpffs.is_mounted(ROOT):
        return ROOT
    return SHARED / "featherlb"


def must_mount() -> bool:
    """Whether no BPF file system is mounted here."""
    return not bpffs.is_mounted(ROOT) and not bpffs.is_mounted(SHARED)


def unavailable() -> str | None:
    """Why this host can't have them, as a sentence with the way out; None if it can."""
    try:
        file = ebpf.read_object(OBJECT)
        if must_mount() and not privileges.has_capability(privileges.CAP_SYS_ADMIN):
            return _no_place("CAP_SYS_ADMIN is missing")
        # One that is loaded and let go again: kernel, privileges and verifier all agree.
        maps = _create(file, 1, 1)
        try:
            for program in ebpf.load(file, maps).values():
                program.close()
        finally:
            for one in maps.values():
                one.close()
    except HostError as error:
        return str(error)
    except OSError as error:
        return f"this kernel refuses eBPF maps ({error.strerror}); Linux 5.12 or later is needed"
    return None


def _mount() -> None:
    """HostError if there is no BPF file system, and none can be mounted."""
    if not must_mount():
        return
    try:
        bpffs.mount(ROOT)
    except OSError as error:
        raise HostError(_no_place(error.strerror)) from None


def _no_place(why: str | None) -> str:
    return (
        f"there is no BPF file system, and none can be mounted ({why}): run `mkdir -p {ROOT} &&"
        f" mount -t bpf bpf {ROOT}` as root before"
    )


def install(instance: int, workers: int, capacity: int) -> None:
    """Create the maps of an instance, for so many flows of all its workers, and load its programs.

    Maps that a dead instance has left are used further on, with all that is in them, if they have
    the same sizes; else the flows that it carried are moved to new ones, as far as there is room.
    Its links run the new programs from then on. HostError if the kernel refuses.
    """
    _mount()
    sweep()
    place = directory(instance)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = ebpf.read_object(OBJECT)
    maps = _adopt(place, file, workers, capacity)
    fresh = not maps
    try:
        if fresh:
            maps = _create(file, workers, capacity)
            if not _move(place, file, maps):
                remove(instance)
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, one in maps.items():
                (place / name).unlink(missing_ok=True)
                one.pin(place / name)
        for worker in range(workers):
            _provide_ring(place, maps[EVENTS], worker)
        programs = ebpf.load(file, maps)
        for name, program in programs.items():
            (place / name).unlink(missing_ok=True)
            program.pin(place / name)
        for index in _numbers(place, "link"):
            _renew(place, index, programs)
        for index in _numbers(place, "filter"):
            tc.attach_filter(programs[_name_at(index)], index, handle(instance))
        for program in programs.values():
            program.close()
    except BaseException as error:
        if fresh:
            remove(instance)
        if not isinstance(error, OSError):
            raise
        raise HostError(
            f"this kernel refuses eBPF maps for {capacity:,} flows: {error.strerror}"
        ) from None
    finally:
        for one in maps.values():
            one.close()


def _shapes(file: ObjectFile, workers: int, capacity: int) -> Mapping[str, MapShape]:
    """The shapes of the maps: entry 0 is unused, each worker has as many, a flow has two keys."""
    entries = (capacity // workers + 2) * workers
    sizes = {ENTRIES: entries, "flows4": 2 * capacity, "flows6": 2 * capacity}
    sizes |= {name: workers * file.maps[name].max_entries for name in (*OF_WORKERS, "places")}
    return {
        name: replace(shape, max_entries=sizes.get(name, shape.max_entries))
        for name, shape in file.maps.items()
    }


def _create(file: ObjectFile, workers: int, capacity: int) -> dict[str, ebpf.Map]:
    with ebpf.create_map(_ring_shape(), "ring") as ring:
        return {
            name: ebpf.create_map(shape, name, ring if name == EVENTS else None)
            for name, shape in _shapes(file, workers, capacity).items()
        }


def _adopt(place: Path, file: ObjectFile, workers: int, capacity: int) -> dict[str, ebpf.Map]:
    """The pinned maps, if all are there and as they are wanted; else none."""
    found: dict[str, ebpf.Map] = {}
    for name, shape in _shapes(file, workers, capacity).items():
        try:
            found[name] = ebpf.open_map(place / name)
        except OSError:
            break
        if found[name].shape != shape:
            break
    else:
        return found
    for one in found.values():
        one.close()
    return {}


def _move(place: Path, file: ObjectFile, maps: Mapping[str, ebpf.Map]) -> bool:
    """Move the flows of a dead instance, which had maps of other sizes, to these; False if there
    are none that can be."""
    try:
        with ebpf.open_map(place / ENTRIES) as old:
            wanted = file.maps[ENTRIES]
            if replace(old.shape, max_entries=wanted.max_entries) != wanted:
                return False
            before = old.memory()
    except OSError:
        return False
    size = wanted.value_size
    after = maps[ENTRIES].memory()
    keys: dict[str, tuple[bytearray, bytearray]] = {
        "flows4": (bytearray(), bytearray()),
        "flows6": (bytearray(), bytearray()),
    }
    index = 0
    for at in range(size, len(before) - size + 1, size):
        if not before[at + LIVE]:
            continue
        index += 1
        if index == maps[ENTRIES].shape.max_entries:
            break
        # What the old program still does to it would be lost.
        before[at + LIVE] = 0
        entry = bytearray(before[at : at + size])
        entry[LIVE] = 1
        after[index * size : (index + 1) * size] = entry
        name = "flows6" if entry[OPTIONS] & IPV6 else "flows4"
        for reply in (0, 1):
            keys[name][0].extend(_key(entry, reply))
            keys[name][1].extend(struct.pack("=I", index << 1 | reply))
    for name, (tuples, references) in keys.items():
        maps[name].update_batch(bytes(tuples), bytes(references), len(references) // 4)
    return index > 0


def _key(entry: bytes | bytearray, reply: int) -> bytes:
    """The key of one direction's packets: source, destination, ports, protocol."""
    # An entry begins with client, VIP, backend and source; their ports are further on.
    first = 32 * reply
    skipped = 0 if entry[OPTIONS] & IPV6 else 12
    source, destination = entry[first : first + 16], entry[first + 16 : first + 32]
    ports = entry[PORTS + 4 * reply : PORTS + 4 * reply + 4]
    return bytes((*source[skipped:], *destination[skipped:], *ports, entry[PROTOCOL], 0, 0, 0))


def _ring_shape() -> MapShape:
    return MapShape(ebpf.MapKind.RINGBUF, 0, 0, RING_SIZE, 0)


def _provide_ring(place: Path, events: ebpf.Map, worker: int) -> None:
    """See that a worker has a ring."""
    path = place / f"ring-{worker}"
    if not path.exists():
        with ebpf.create_map(_ring_shape(), "ring") as ring:
            ring.pin(path)
    with ebpf.open_map(path) as ring:
        events.update(struct.pack("=I", worker), struct.pack("=I", ring.fd))


def _renew(place: Path, index: int, programs: Mapping[str, ebpf.Program]) -> None:
    """Have a link run another program. One whose interface has gone is removed."""
    path = place / f"link-{index}"
    with tc.Link(ebpf.open_pin(path)) as link:
        try:
            link.update(programs[_name_at(index)])
        except OSError:
            path.unlink()


def _name_at(index: int) -> str:
    """The name of the program for the interface with this index."""
    link = rtnetlink.links().get(index)
    return INGRESS if link is None or link.ethernet else BARE


def attach(instance: int, links: Iterable[Link]) -> list[str]:
    """Have the programs run at these links and at no others; sentences about those where the kernel
    refuses."""
    place = directory(instance)
    refused = []
    wanted = {link.index: link for link in links if runs_at(link)}
    there = {*_numbers(place, "link"), *_numbers(place, "filter")}
    for index in there - wanted.keys():
        _detach(place, instance, index)
    for index in sorted(wanted.keys() - there):
        try:
            with _open_program(place, INGRESS if wanted[index].ethernet else BARE) as program:
                _attach_one(place, instance, index, program)
        except OSError as error:
            if error.errno != errno.ENODEV:  # it has gone again
                refused.append(
                    f"no eBPF program can be attached to {wanted[index].name} ({error.strerror}):"
                    " packets from there go through the queue"
                )
    return refused


def runs_at(link: Link) -> bool:
    """Whether packets of flows may enter by a link: not by the loopback interface, whose packets
    are of this host, nor by a port of a bridge, which has them first."""
    return link.up and link.name != LOOPBACK and not link.member


def _attach_one(place: Path, instance: int, index: int, program: ebpf.Program) -> None:
    link = tc.attach(program, index)
    if link is not None:
        with link:
            link.pin(place / f"link-{index}")
        return
    # The pins come first: they say what to remove.
    program.pin(place / f"filter-{index}")
    if tc.attach_filter(program, index, handle(instance)):
        program.pin(place / f"clsact-{index}")


def _open_program(place: Path, name: str) -> ebpf.Program:
    return ebpf.Program(ebpf.open_pin(place / name), ebpf.ProgramKind.SCHED_CLS, name)


def attached(instance: int) -> set[int]:
    """The indexes of the interfaces at which the programs run."""
    place = directory(instance)
    return {*_numbers(place, "link"), *_numbers(place, "filter")}


def handle(instance: int) -> int:
    """The number of an instance's filter among those of all instances at a link."""
    return instance + 1


def _detach(place: Path, instance: int, index: int) -> None:
    if (place / f"filter-{index}").exists():
        tc.detach_filter(index, handle(instance), (place / f"clsact-{index}").exists())
    for kind in ("link", "filter", "clsact"):
        (place / f"{kind}-{index}").unlink(missing_ok=True)


def _numbers(place: Path, kind: str) -> Iterator[int]:
    for path in sorted(place.glob(f"{kind}-*")):
        yield int(path.name.partition("-")[2])


def carry_any(instance: int) -> bool:
    """Whether an instance's program carries a flow."""
    try:
        with ebpf.open_map(directory(instance) / ENTRIES) as entries:
            memory = entries.memory()
    except OSError:
        return False
    return any(memory[LIVE :: entries.shape.value_size])


def open_none(instance: int) -> None:
    """Have an instance's program open no more flows; it goes on with those that it has."""
    with suppress(FileNotFoundError), ebpf.open_map(directory(instance) / "places") as places:
        keys = list(places.keys())
        places.delete_batch(b"".join(keys), len(keys))


def instances() -> set[int]:
    """The instances that have any, in this network namespace."""
    place = _root() / Journal().directory.name
    return {int(path.name) for path in place.glob("*") if path.name.isdigit()}


def sweep() -> None:
    """Remove what instances have left in network namespaces that are gone: all their links lead
    nowhere."""
    ours = Journal().directory.name
    for place in _root().glob("*/*"):
        if place.parent.name == ours or not place.is_dir():
            continue
        # Others remove, too.
        with suppress(OSError):
            links = [path for path in place.glob("*-*") if path.name.startswith(("link", "filter"))]
            if links and all(_leads_nowhere(path) for path in links):
                _empty(place)
                place.parent.rmdir()


def _leads_nowhere(path: Path) -> bool:
    if not path.name.startswith("link"):
        return False
    with tc.Link(ebpf.open_pin(path)) as link:
        return link.index == 0


def _empty(place: Path) -> None:
    """Remove all pins in a directory, and the directory."""
    for path in place.glob("*"):
        path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        place.rmdir()


def remove(instance: int) -> None:
    """Detach an instance's programs and remove all that it has pinned; the file system, too, if
    nothing else is there. What isn't there is no error."""
    place = directory(instance)
    try:
        for index in attached(instance):
            _detach(place, instance, index)
        _empty(place)
        sweep()
        with suppress(OSError):
            # Only when they are empty.
            place.parent.rmdir()
            if _root() == ROOT:
                _unmount()
            else:
                _root().rmdir()
    except OSError as error:
        raise HostError(f"cannot remove the eBPF programs in {place}: {error.strerror}") from None


def _unmount() -> None:
    """Unmount our file system, if it is ours and nothing is in it."""
    # The kernel's own files have a dot in their names.
    if bpffs.source(ROOT) == bpffs.OURS and all("." in path.name for path in ROOT.iterdir()):
        bpffs.unmount(ROOT)
        ROOT.rmdir()
