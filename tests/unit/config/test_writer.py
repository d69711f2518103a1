"""A written configuration reads back as an equal one, whatever it holds."""

from pathlib import Path

import pytest

from featherlb.config import schema
from featherlb.config.file import parse
from featherlb.config.types import Config
from featherlb.config.writer import write

EXAMPLES = Path(__file__).parents[3] / "examples"
FULL = """
services:
  - name: web
    vip: ['[2001:db8::1]:80', '[2001:db8::1]:8000-8010']
    scheduler: maglev
    nat: full
    source_addresses: ['2001:db8::2']
    persistence: {timeout: 5m}
    allow: ['2001:db8::/32', {file: some/networks.txt}]
    deny: 2001:db8::7
    deny_action: reset
    max_flows: [{limit: 7, prefix: 48, action: reset}, 9]
    max_new: [{rate: 600/m, burst: 8}, {rate: 5/s, prefix: 0}]
    redispatch: {refused: false, silent: false, attempts: 3}
    mss: 1400
    syn_cookies: always
    sync: immediate
    on_backend_down: reset
    on_open: /etc/hooks.py:opened
    on_close: /etc/hooks.py:closed
    on_backend_change: /etc/hooks.py:changed
    backends: ['[2001:db8::3]:80', {address: 'name:80', weight: 0},
      {address: '[2001:db8::4]:80', role: sorry, max_connections: 7,
      labels: {zone: a, rack: r7}}]
  - name: ranges
    vip: ['10.0.0.4:8000-8010', '10.0.0.5:8000-8010']
    backends: [10.0.1.1, '10.0.1.2:9000-9010', name, {address: '10.0.1.3:80', weight: 2}]
    scheduler: mh
    hash_on: [src/24, dport]
    hash_balance: 125
    prefer: {labels: {zone: a, rack: b}, spill_below: 80}
  - name: all
    vip: '[2001:db8::9]:*'
    backends: ['[2001:db8::3]']
  - name: dns
    vip: 10.0.0.1:53
    protocol: udp
    datapath: auto
    one_packet: true
  - name: ntp
    vip: 10.0.0.1:123
    protocol: udp
    responses: 1
    health: {type: udp, send: "\\x00é:", expect: "1", interval: 3, timeout: 2, rise: 4, fall: 5}
  - name: api
    vip: 10.0.0.1:90
    health: {type: https, method: HEAD, path: /h, host: h, status: [200, 300-302], body: "no",
      initial: down, address: 10.0.0.9, port: 99}
    slow_start: 30s
    panic_threshold: 40
    passive_health: {failures: 2, share: 3, window: 4, ejection: 5, longest_ejection: 6,
      max_ejected: 7, slower: 8, slower_by: 9ms}
  - name: mail
    vip: 10.0.0.1:25
    health: {type: script, command: [check, "-v"], user: nobody}
queue: 3
workers: 2
fail_open: true
assign: false
restore: false
driver: netfilterqueue
hash_key: 'x: "y"'
max_flows: 5
timeouts: {half_open: 1, established: 2, fin: 3, closed: 4, udp_one_way: 5.5, udp_two_way: 6}
resolve_interval: 7s
recorder: {size: 9, dump_when: "rate(packets(result='dropped')) > 100"}
api: {listen: '[::1]:80', token: aaaaaaaaaaaaaaaa, hosts: [lb.example.org]}
"""


NODE = """
services:
  - {vip: 10.0.0.1:80, nat: full}
cluster:
  node: lb1
  listen: 10.9.0.1:7946
  peers: [10.9.0.1:7946, '[2001:db8::2]:7946']
  keys: /etc/keys
  source_addresses: {lb1: [10.0.1.1, '2001:db8:1::1'], lb2: 10.0.1.2}
"""


def test_every_key_survives() -> None:
    text = ""
    for given in (FULL, NODE):
        config = parse(given, "full")
        written = write(config)
        assert parse(written, "written") == config
        text += written
    for model in (
        schema.ServicesFile,
        schema.ServiceEntry,
        schema.HealthEntry,
        schema.PassiveHealthEntry,
        schema.PreferenceEntry,
        schema.MaxFlowsEntry,
        schema.MaxNewEntry,
        schema.BackendEntry,
        schema.RedispatchEntry,
        schema.ApiEntry,
        schema.ClusterEntry,
        schema.RecorderEntry,
        schema.TimeoutsEntry,
    ):
        for key in model.model_fields:
            assert f"{key}:" in text, f"{key} is not written, or not in this test"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_survive(path: Path) -> None:
    # Only the Go featherlb's file has names as VIPs.
    config = parse(path.read_text().replace("localhost", "127.0.0.1"), str(path))
    assert parse(write(config), "written") == config


def test_defaults_are_not_written() -> None:
    assert write(Config()) == "services: []\n"
