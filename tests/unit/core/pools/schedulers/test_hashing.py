import hashlib

from featherlb import model
from featherlb.core.pools.schedulers import NewFlow
from featherlb.core.pools.schedulers.hashing import (
    KeyedHash,
    client_bytes,
    endpoint_bytes,
    five_tuple_bytes,
)


def test_the_hash_is_blake2s_under_a_key_of_its_own_for_each_purpose() -> None:
    subkey = hashlib.blake2b(b"purpose", key=b"secret", digest_size=32).digest()
    digest = hashlib.blake2s(b"data", key=subkey, digest_size=8).digest()
    assert KeyedHash(b"secret", b"purpose")(b"data") == int.from_bytes(digest, "big")


def test_known_answers_so_that_releases_agree() -> None:
    value = KeyedHash(b"secret", b"client")(b"\x0a\x00\x00\x01")
    assert value == 0xE06DA9BA6C239FB0
    assert KeyedHash(b"", b"client")(b"\x0a\x00\x00\x01") != value
    assert KeyedHash(b"secret", b"flow")(b"\x0a\x00\x00\x01") != value


def test_a_hash_can_be_used_again() -> None:
    function = KeyedHash(b"secret", b"purpose")
    assert [function(b"a"), function(b"b"), function(b"a")] == [
        KeyedHash(b"secret", b"purpose")(data) for data in (b"a", b"b", b"a")
    ]


def test_what_is_hashed_of_a_flow() -> None:
    v4 = NewFlow(6, 4, 0x0A000001, 0x1234, 0x0A00000A, 80)
    assert client_bytes(v4).hex() == "0a000001"
    assert five_tuple_bytes(v4).hex() == "0a0000010a00000a1234005006"
    v6 = NewFlow(17, 6, 1, 0x1234, 0x20010DB8 << 96, 80)
    assert client_bytes(v6).hex() == "00" * 15 + "01"
    assert five_tuple_bytes(v6).hex() == ("00" * 15 + "01" + "20010db8" + "00" * 12 + "1234005011")


def test_what_is_hashed_of_an_endpoint() -> None:
    assert endpoint_bytes(model.Endpoint.parse("10.0.1.2:8080")).hex() == "0a0001021f90"
    assert endpoint_bytes(model.Endpoint.parse("[::1]:80")).hex() == "00" * 15 + "01" + "0050"
