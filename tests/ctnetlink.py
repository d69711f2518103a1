"""Conntrack's messages as pyroute2 reads and writes them."""

from typing import Any

from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from featherlb.core.flows.kernel import Commands
from featherlb.system.conntrack_messages import Entry, Requests
from tests.world import World

CREATE, GET, DELETE = 0x100, 0x101, 0x102


def messages(world: World) -> list[Any]:
    """The core's commands as requests to conntrack, which pyroute2 reads."""
    batch, requests = Commands(), Requests()
    world.balancer.offload.commands.take(batch)
    requests.write(batch, 0, batch.count)
    data = bytes(requests.take())
    found = []
    while data:
        length = int.from_bytes(data[:4], "little")
        message = nfct_msg(data[:length])
        message.decode()
        found.append(message)
        data = data[length:]
    return found


def entry(original: dict[str, Any], back: dict[str, Any], **fields: Any) -> bytes:
    """A message about an entry, as pyroute2 writes it."""

    def direction(given: dict[str, Any]) -> dict[str, Any]:
        version = "V6" if ":" in given["source"] else "V4"
        return {
            "attrs": [
                (
                    "CTA_TUPLE_IP",
                    {
                        "attrs": [
                            (f"CTA_IP_{version}_SRC", given["source"]),
                            (f"CTA_IP_{version}_DST", given["destination"]),
                        ]
                    },
                ),
                (
                    "CTA_TUPLE_PROTO",
                    {
                        "attrs": [
                            ("CTA_PROTO_NUM", given["protocol"]),
                            ("CTA_PROTO_SRC_PORT", given["ports"][0]),
                            ("CTA_PROTO_DST_PORT", given["ports"][1]),
                        ]
                    },
                ),
            ]
        }

    message = nfct_msg()
    message["header"]["type"] = CREATE
    message["header"]["sequence_number"] = 7
    message["header"]["pid"] = 99
    message["nfgen_family"] = 10 if ":" in original["source"] else 2
    message["attrs"] = [
        ("CTA_TUPLE_ORIG", direction(original)),
        ("CTA_TUPLE_REPLY", direction(back)),
        *fields.items(),
    ]
    message.encode()
    return bytes(message.data)


def read(data: bytes) -> Entry:
    """The core's reading of one message, in the middle of a buffer."""
    found = Entry()
    found.attach(bytearray(b"\xff" * 8 + data + b"\xff" * 64))
    assert found.read(8, 8 + len(data)) == 8 + (len(data) + 3) // 4 * 4
    return found
