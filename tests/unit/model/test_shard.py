"""Which worker a flow belongs to: the kernel's HMARK is the judge."""

from ipaddress import ip_address

import pytest

from featherlb.model import ALL_SOURCE_PORTS
from featherlb.model.shard import Shard
from featherlb.net.addresses import words_of


# Marks that Linux 6.18 gave to packets of these clients: `-j HMARK --hmark-tuple src,sport
# --hmark-rnd SEED --hmark-mod WORKERS`.
@pytest.mark.parametrize(
    ("client", "port", "seed", "workers", "mark"),
    [
        ("198.51.100.7", 35089, 0xCAFE, 3, 2),
        ("203.0.113.77", 65393, 0xCAFE, 3, 0),
        ("203.0.113.77", 43134, 0xCAFE, 3, 1),
        ("2001:db8:1::7", 21955, 0xCAFE, 3, 2),
        ("2001:db8:1::7", 62547, 0xCAFE, 3, 1),
        ("2001:db8:ffff:7:8::9", 19192, 0xCAFE, 3, 0),
        ("198.51.100.7", 37908, 0xFEDCBA98, 64, 35),
        ("203.0.113.77", 39824, 0xFEDCBA98, 64, 10),
        ("2001:db8:1::7", 41628, 0xFEDCBA98, 64, 19),
        ("2001:db8:ffff:7:8::9", 56536, 0xFEDCBA98, 64, 11),
    ],
)
def test_the_kernel_agrees(client: str, port: int, seed: int, workers: int, mark: int) -> None:
    shards = [Shard(number, workers, seed) for number in range(workers)]
    owners = [one.worker for one in shards if one.has(*words_of(ip_address(client)), port)]
    assert owners == [mark]


# Marks of `-j HMARK --hmark-src-prefix PREFIX --hmark-rnd SEED --hmark-mod WORKERS`, as above.
@pytest.mark.parametrize(
    ("client", "seed", "workers", "prefix", "mark"),
    [
        ("198.51.100.7", 0xCAFE, 64, 32, 41),
        ("203.0.113.77", 0xCAFE, 64, 24, 53),
        ("203.0.113.9", 0xCAFE, 64, 24, 53),
        ("203.0.113.9", 0xFEDCBA98, 7, 9, 1),
        ("2001:db8:1::7", 0xCAFE, 64, 128, 55),
        ("2001:db8:1::7", 0xCAFE, 64, 56, 62),
        ("2001:db8:1:ff:7:8::9", 0xCAFE, 64, 56, 62),
        ("2001:db8:ffff:7:8::9", 0xFEDCBA98, 7, 128, 5),
        ("2001:db8:ffff:7:8::9", 0xCAFE, 64, 33, 60),
    ],
)
def test_the_kernel_agrees_on_networks(
    client: str, seed: int, workers: int, prefix: int, mark: int
) -> None:
    address = ip_address(client)
    prefix4, prefix6 = (prefix, 0) if address.version == 4 else (0, prefix)
    shards = [Shard(number, workers, seed, prefix4, prefix6) for number in range(workers)]
    for port in (1, 35089):
        owners = [one.worker for one in shards if one.has(*words_of(address), port)]
        assert owners == [mark]


@pytest.mark.parametrize("workers", [1, 3, 64])
def test_all_is_shared_out(workers: int) -> None:
    shards = [Shard(number, workers, seed=1) for number in range(workers)]
    parts = zip(*(one.all_ports for one in shards), strict=True)
    for whole, part in zip(ALL_SOURCE_PORTS, parts, strict=True):
        ports = [port for one in part for port in one]
        assert ports == list(whole[: len(ports)])
        assert len(ports) > len(whole) - workers
    for limit in (1, 64, 100):
        assert sum(one.connections(limit) for one in shards) == limit
