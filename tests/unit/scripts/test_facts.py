"""Version numbers out of what programs say of themselves."""

import pytest

from scripts.bench.facts import parse_version


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "2.6.12-1+deb12u4"),
        ("nginx version: nginx/1.22.1", "1.22.1"),
        ("nftables v1.0.6 (Lester Gooch #5)", "1.0.6"),
        ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012", "4.1.0-3+b2"),
        ("iperf 3.12 (cJSON 1.7.15)\nLinux vm 6.1.0", "3.12"),
        ("featherlb, version 0.1.0", "0.1.0"),
        ("", ""),
    ],
)
def test_versions(output: str, version: str) -> None:
    assert parse_version(output) == version
