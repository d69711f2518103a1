"""Attaches programs to where packets enter a link: by a tcx link (Linux 6.6), else as a filter of
the queueing discipline clsact. Both run before netfilter and see the same packets.

A tcx link ends with its descriptor unless it is pinned; a filter stays until it is removed, or its
interface is. Numbers are those of include/uapi/linux/{bpf,rtnetlink,pkt_sched,pkt_cls}.h.
"""

import ctypes
import errno
import struct
from collections.abc import Collection

from featherlb import model
from featherlb.model.errors import HostError
from featherlb.net.netlink import (
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    attribute,
    parse_attributes,
    read_text,
    text_attribute,
)
from featherlb.system.ebpf import Command, Descriptor, Program, call, invoke
from featherlb.system.netlink import NETLINK_ROUTE, Connection
from featherlb.system.rtnetlink import RTM_GETLINK

TCX_INGRESS = 46
"""BPF_TCX_INGRESS of enum bpf_attach_type."""
PRIORITY = 49152
"""Of our filter: filters with lower numbers run first. The kernel gives this one to the first
filter that asks for none."""

_IFINFOMSG = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, change."""
_IFLA_XDP, _IFLA_XDP_ATTACHED = 43, 2
_RTM_NEWQDISC, _RTM_DELQDISC = 36, 37
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCMSG = struct.Struct("=BxxxiIII")
"""struct tcmsg: family, interface index, handle, parent, info."""
_CLSACT = 0xFFFFFFF1
"""TC_H_CLSACT, and as the handle of a queueing discipline without its lower half."""
_CLSACT_HANDLE = 0xFFFF0000
_INGRESS = 0xFFFFFFF2
"""TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)."""
_ETH_P_ALL = 0x0300
"""In network byte order."""
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS = 6, 7, 8
_DIRECT_ACTION = 1
_MOST = 64
"""Programs that the kernel attaches to one place (BPF_MPROG_MAX)."""


class Link(Descriptor):
    """A program at an interface, by tcx."""

    @property
    def index(self) -> int:
        """The index of the interface; 0 if that has gone."""
        # struct bpf_link_info: type, id, id of the program, then, of tcx, the index.
        info = ctypes.create_string_buffer(64)
        attribute = struct.pack("=IIQ", self.fd, len(info), ctypes.addressof(info))
        call(Command.OBJ_GET_INFO_BY_FD, attribute)
        index: int = struct.unpack_from("=I", info, 16)[0]
        return index

    def update(self, program: Program) -> None:
        """Run another program from the next packet on."""
        call(Command.LINK_UPDATE, struct.pack("=IIII", self.fd, program.fd, 0, 0))


def attach(program: Program, index: int) -> Link | None:
    """Run a program on all packets that enter by an interface; None if this kernel has no tcx.
    OSError if there is no such interface, or CAP_NET_ADMIN is missing."""
    try:
        return Link(
            call(
                Command.LINK_CREATE,
                struct.pack("=IIIIIIQ", program.fd, index, TCX_INGRESS, 0, 0, 0, 0),
            )
        )
    except OSError as error:
        # Kernels without it refuse its attach type.
        if error.errno == errno.EINVAL:
            return None
        raise


def attach_at(program: Program, links: Collection[model.Link], standing: dict[int, Link]) -> None:
    """Have a program run at these links, and at no others: `standing`, by index, are where it does,
    and are brought up to date. HostError if this kernel has no tcx, or refuses the program."""
    wanted = {link.index for link in links}
    for index in standing.keys() - wanted:
        standing.pop(index).close()
    for index in wanted - standing.keys():
        try:
            link = attach(program, index)
        except FileNotFoundError:
            continue  # it has gone
        except OSError as error:
            raise HostError(f"the kernel refuses a program ({error.strerror})") from None
        if link is None:
            raise HostError("this kernel has no tcx (Linux 6.6)")
        standing[index] = link


def attach_filter(program: Program, index: int, handle: int = 1) -> bool:
    """Run a program on all packets that enter by an interface, as a filter that replaces the one
    with the same handle; True if the queueing discipline that it is attached to was created for it.
    OSError as `attach`."""
    with Connection(NETLINK_ROUTE) as kernel:
        created = True
        try:
            header = _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0)
            body = header + text_attribute(_TCA_KIND, "clsact")
            kernel.change(_RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)
        except FileExistsError:
            created = False
        options = (
            attribute(_TCA_BPF_FD, struct.pack("=I", program.fd))
            + text_attribute(_TCA_BPF_NAME, f"featherlb/{program.name}")
            + attribute(_TCA_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
        )
        body = (
            _filter(index, handle)
            + text_attribute(_TCA_KIND, "bpf")
            + attribute(_TCA_OPTIONS | NLA_F_NESTED, options)
        )
        kernel.change(_RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, body)
    return created


def find_filter(index: int, handle: int = 1) -> str | None:
    """The name of the filter in our place at an interface, None if there is none."""
    with Connection(NETLINK_ROUTE) as kernel:
        try:
            found = kernel.get(
                _RTM_GETTFILTER, _filter(index, handle) + text_attribute(_TCA_KIND, "bpf")
            )
        except OSError:
            return None
    options = parse_attributes(parse_attributes(found, _TCMSG.size).get(_TCA_OPTIONS, b""))
    return read_text(options.get(_TCA_BPF_NAME, b""))


def detach_filter(index: int, handle: int = 1, with_discipline: bool = False) -> None:
    """Remove our filter from an interface, and the queueing discipline if that was created for it.
    What isn't there is no error."""
    with Connection(NETLINK_ROUTE) as kernel:
        steps = [(_RTM_DELTFILTER, _filter(index, handle) + text_attribute(_TCA_KIND, "bpf"))]
        if with_discipline:
            header = _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0)
            steps.append((_RTM_DELQDISC, header + text_attribute(_TCA_KIND, "clsact")))
        for kind, body in steps:
            try:
                kernel.change(kind, 0, body)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                    raise


def _filter(index: int, handle: int) -> bytes:
    return _TCMSG.pack(0, index, handle, _INGRESS, PRIORITY << 16 | _ETH_P_ALL)


def programs_at(index: int) -> list[str]:
    """The names of the tcx programs where packets enter an interface, in the order in which they
    run; empty without CAP_SYS_ADMIN, or if this kernel has no tcx."""
    ids = (ctypes.c_uint32 * _MOST)()
    query = _Query(target=index, attach_type=TCX_INGRESS, ids=ctypes.addressof(ids), count=_MOST)
    try:
        invoke(Command.PROG_QUERY, query)
        return [_name_of(one) for one in ids[: query.count]]
    except OSError:
        return []


def _name_of(number: int) -> str:
    with Descriptor(call(Command.PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))) as found:
        info = ctypes.create_string_buffer(80)
        call(
            Command.OBJ_GET_INFO_BY_FD,
            struct.pack("=IIQ", found.fd, len(info), ctypes.addressof(info)),
        )
        return info.raw[64:80].rstrip(b"\0").decode()


def has_xdp(index: int) -> bool:
    """Whether an XDP program is attached to an interface."""
    with Connection(NETLINK_ROUTE) as kernel:
        found = kernel.get(RTM_GETLINK, _IFINFOMSG.pack(0, 0, index, 0, 0))
    xdp = parse_attributes(parse_attributes(found, _IFINFOMSG.size).get(_IFLA_XDP, b""))
    return any(xdp.get(_IFLA_XDP_ATTACHED, b""))


class _Query(ctypes.Structure):
    """The part of `union bpf_attr` for PROG_QUERY. `count` comes back as how many there are."""

    _fields_ = (
        ("target", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("ids", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("program_flags", ctypes.c_uint64),
        ("link_ids", ctypes.c_uint64),
        ("link_flags", ctypes.c_uint64),
        ("revision", ctypes.c_uint64),
    )
