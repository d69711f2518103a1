"""A valid file with two mistakes: whatever they are, the answer is sentences with their lines."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from featherlb.cli.check import check
from featherlb.config.file import parse
from featherlb.model.errors import ConfigError

VALID = """
queue: 3
workers: 2
fail_open: true
assign: false
restore: false
driver: netlink
hash_key: secret
max_flows: 1000
resolve_interval: 10s
timeouts: {half_open: 5s, established: 1h, fin: 30s, closed: 5s, udp_one_way: 30s, udp_two_way: 2m}
api: {listen: '127.0.0.1:9000', token: a-token-of-the-test}
services:
- name: web
  vip: ['10.0.0.10:80', '10.0.0.10:8000-8010']
  protocol: tcp
  scheduler: least-connections
  nat: full
  datapath: auto
  source_addresses: [10.0.1.1, 10.0.1.9]
  persistence: {timeout: 5m, prefix: 24}
  allow: [10.0.0.0/8, 192.168.0.0/16]
  deny: [10.9.0.0/16]
  deny_action: reset
  max_flows: {limit: 100, prefix: 24, action: drop}
  max_new: {rate: 50/s, burst: 100, prefix: 32, action: reset}
  mss: 1400
  on_backend_down: reset
  health:
    type: http
    interval: 2s
    timeout: 1s
    rise: 2
    fall: 3
    initial: down
    port: 8081
    method: GET
    path: /health
    host: example.org
    status: [200, 301-302]
    body: fine
  passive_health: {failures: 5, share: 50, window: 10s, ejection: 30s, longest_ejection: 5m}
  slow_start: 30s
  panic_threshold: 50
  backends:
  - 10.0.1.2:8080
  - {address: 'b.example:8080', weight: 3, role: backup, max_connections: 9}
- name: dns
  vip: 10.0.0.10:53
  protocol: udp
  one_packet: true
  responses: 1
  health: {type: udp, send: ping, expect: pong}
  backends: ['10.0.1.2:53']
- name: mail
  vip: 10.0.0.10:25
  health: {type: script, command: [/bin/check, '1']}
  backends: ['10.0.1.2:25']
"""
ROUTES = """
routes:
- host: 10.0.0.10
  port: 80
  strategy: roundrobin
  endpoints:
  - {host: 10.0.1.2, port: 80}
  - {host: b.example, port: 80}
"""

Place = tuple[Any, ...]


def places(data: Any, place: Place = ()) -> Iterator[Place]:
    """Where something stands in a document, and so can be wrong."""
    if place:
        yield place
    items: Any = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    for key, value in items:
        yield from places(value, (*place, key))


WRONG: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1.5, 10**9, "", "x", "10.0.0.10:80", "0.0.0.0", "udp", "raw", "script"]
    ),
    st.sampled_from([[], {}, [None], ["x", "x"], {"x": 1}, {"type": "tcp"}, [[]], [{}]]),
)


@st.composite
def mistakes(draw: st.DrawFn, valid: str, count: int) -> str:
    """The text of a file with so many mistakes."""
    document: Any = yaml.safe_load(valid)
    for _ in range(count):
        found = list(places(document))
        if not found:
            break
        place = draw(st.sampled_from(found))
        parents, last = place[:-1], place[-1]
        owner: Any = document
        for part in parents:
            owner = owner[part]
        match draw(st.sampled_from(["replace", "remove", "rename", "add", "repeat"])):
            case "replace":
                owner[last] = copy.deepcopy(draw(WRONG))
            case "remove":
                del owner[last]
            case "rename" if isinstance(owner, dict):
                owner[f"{last}x"] = owner.pop(last)
            case "repeat" if isinstance(owner, list):
                owner.append(copy.deepcopy(owner[last]))
            case _ if isinstance(owner, dict):
                owner["unknown"] = copy.deepcopy(draw(WRONG))
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


@pytest.mark.parametrize("valid", [VALID, ROUTES])
def test_the_files_are_valid_before(valid: str) -> None:
    assert parse(valid, "f").services


@given(text=mistakes(VALID, 2) | mistakes(VALID, 5) | mistakes(ROUTES, 2))
def test_mistakes_are_sentences_with_their_lines(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "mistakes.yaml"
    path.write_text(text)
    judged(path)


def judged(path: Path) -> None:
    """Whatever is in a file, `check` says `ok`, or sentences with their lines."""
    result = CliRunner().invoke(check, [str(path)])
    assert result.exit_code in (0, 2), result.exception
    if result.exit_code == 2:
        assert result.stdout == ""
        assert result.stderr
        for line in result.stderr.splitlines():
            # A key, which may begin with a capital, or the sentence.
            assert re.match(rf"{re.escape(str(path))}:\d+: (\S+: )?[^A-Z].*\S$", line), line


@st.composite
def slips(draw: st.DrawFn, valid: str) -> str:
    """The text of a file after two slips of the hand: what is changed, lost or moved."""
    text = valid
    for _ in range(2):
        at = draw(st.integers(0, len(text) - 1))
        length = draw(st.sampled_from([0, 1, 1, 2, 20]))
        put = draw(
            st.text(max_size=3)
            | st.sampled_from(["\n", "\t", "  ", ": ", "- ", "[", "{", "&a ", "*a", "<<: "])
        )
        if draw(st.booleans()):
            lines = text.splitlines(keepends=True)
            lines.insert(draw(st.integers(0, len(lines))), lines.pop(at % len(lines)))
            text = "".join(lines)
        else:
            text = text[:at] + put + text[at + length :]
    return text


@given(text=slips(VALID) | slips(ROUTES))
def test_slips_of_the_hand_are_sentences_with_their_lines(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "slips.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    judged(path)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            "health: {inerval: 2, timout: 1s}",
            [
                "health: 'type' is missing",
                "health.inerval: unknown key (did you mean 'interval'?)",
                "health.timout: unknown key (did you mean 'timeout'?)",
            ],
        ),
        (
            "health: {type: smtp, rise: x}",
            ["health.type: 'smtp' is unknown", "health.rise: 'x' is text"],
        ),
        (
            "passive_health: {failures: x, shares: 5}",
            ["passive_health.failures: 'x' is text", "passive_health.shares: unknown key"],
        ),
        (
            "persistence: {timeout: soon, prefixes: 1}",
            ["persistence.timeout: 'soon' is not a duration", "persistence.prefixes: unknown key"],
        ),
        (
            "backends: {address: 'a:1', weigth: 1}",
            ["backends: this is a mapping (expected a list)"],
        ),
        (
            "backends: [{adress: 'a:1', weigth: 1}]",
            [
                "backends[0]: 'address' is missing",
                "backends[0].adress: unknown key",
                "backends[0].weigth: unknown key",
            ],
        ),
    ],
)
def test_every_mistake_in_a_section_is_said(section: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"services:\n- vip: 10.0.0.10:80\n  {section}\n", "f")
    faults = sorted(caught.value.faults)
    assert len(faults) == len(said)
    for fault in said:
        assert any(one.startswith(f"f:3: services[0].{fault}") for one in faults), faults
