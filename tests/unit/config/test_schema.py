"""One small document per fault of structure, with the exact line that the operator reads."""

import pytest

from featherlb.config.file import parse
from featherlb.core.pools.schedulers import names
from featherlb.model.errors import ConfigError

SERVICE = "services:\n- vip: 10.0.0.10:80\n"
BACKENDS = f"{SERVICE}  backends:\n"

SERVICE_KEYS = (
    "name, vip, protocol, scheduler, hash_on, hash_balance, nat, datapath, source_addresses, "
    "sync, persistence, prefer, redispatch, allow, deny, deny_action, max_flows, max_new, "
    "mss, syn_cookies, one_packet, responses, on_backend_down, on_open, on_close, "
    "on_backend_change, health, "
    "passive_health, slow_start, panic_threshold, backends"
)
FILE_KEYS = (
    "services, queue, workers, fail_open, assign, restore, driver, hash_key, max_flows, timeouts, "
    "resolve_interval, recorder, api, cluster"
)
DURATION = "a duration such as 500ms, 30s, 5m or 1h, at most 720h"
TEXT = "text, in quotes if it looks like a number"
SCHEDULERS = "<the registry's>"
"""Filled in when the test runs: other tests add schedulers of their own."""


def faults_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse(text, "f")
    return list(raised.value.faults)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # The file.
        ("", "f:1: the file is empty (expected the key 'services')"),
        ("- 1", "f:1: this is not a mapping (expected the key 'services')"),
        ("queue: 1", "f:1: 'services' is missing (expected a list of services)"),
        ("services:", "f:1: services: the value is missing (expected a list)"),
        ("services: {}", "f:1: services: this is a mapping (expected a list)"),
        (
            "services:\n- 10.0.0.1:80",
            f"f:2: services[0]: '10.0.0.1:80' is text (expected a mapping with {SERVICE_KEYS})",
        ),
        (
            "services: []\nroutes: []",
            "f:2: routes: can't be combined with 'services' (expected one of them)",
        ),
        # Keys.
        (
            f"{SERVICE}  sheduler: rr",
            "f:3: services[0].sheduler: unknown key (did you mean 'scheduler'?)",
        ),
        (
            f"{SERVICE}  source-addresses: []",
            "f:3: services[0].source-addresses: unknown key (did you mean 'source_addresses'?)",
        ),
        (
            f"{SERVICE}  'a\\b': 1",
            f"f:3: services[0].'a\\\\b': unknown key (expected one of {SERVICE_KEYS})",
        ),
        (f"{SERVICE}health: {{}}", f"f:3: health: unknown key (expected one of {FILE_KEYS})"),
        (
            f"{SERVICE}  nat: full\n  nat: full",
            "f:4: duplicate key 'nat' (first on line 3)",
        ),
        (
            f"{BACKENDS}  - {{adress: '10.0.1.2:80', address: '10.0.1.2:80'}}",
            "f:4: services[0].backends[0].adress: unknown key (did you mean 'address'?)",
        ),
        (
            f"{SERVICE}timeouts: {{finn: 1}}",
            "f:3: timeouts.finn: unknown key (did you mean 'fin'?)",
        ),
        # Names.
        (f"{SERVICE}  name: 5", f"f:3: services[0].name: 5 is a number (expected {TEXT})"),
        (f"{SERVICE}  name: ''", f"f:3: services[0].name: the text is empty (expected {TEXT})"),
        (
            f"{SERVICE}  name: a b",
            "f:3: services[0].name: 'a b' is not a valid name (expected up to 63 letters, digits,"
            " '.', '_' and '-', a letter or digit first)",
        ),
        (
            f'{SERVICE}  name: "a\\nb"',
            "f:3: services[0].name: 'a\\nb' contains unprintable characters",
        ),
        (
            f'{SERVICE}  name: "\\uD800"',
            "f:3: services[0].name: '\\ud800' contains unprintable characters",
        ),
        # VIPs.
        (
            "services:\n- name: a",
            "f:2: services[0]: 'vip' is missing (expected IP:PORT, or a list of them)",
        ),
        ("services:\n- vip:", "f:2: services[0].vip: the value is missing (expected IP:PORT)"),
        ("services:\n- vip: 80", "f:2: services[0].vip: 80 is a number (expected IP:PORT)"),
        (
            "services:\n- vip: []",
            "f:2: services[0].vip: the list is empty (expected at least one entry)",
        ),
        ("services:\n- vip: {a: 1}", "f:2: services[0].vip: this is a mapping (expected IP:PORT)"),
        ("services:\n- vip: 10.0.0.10", "f:2: services[0].vip: '10.0.0.10' is not HOST:PORT"),
        ("services:\n- vip: 10:30", "f:2: services[0].vip: '10' is not an IP address"),
        (
            "services:\n- vip: a.example:80",
            "f:2: services[0].vip: 'a.example' is not an IP address",
        ),
        (
            "services:\n- vip: 10.0.0.10:0",
            "f:2: services[0].vip: port '0' is not a number from 1 to 65535",
        ),
        (
            "services:\n- vip: 2001:db8::1:80",
            "f:2: services[0].vip: '2001:db8::1:80' needs brackets around its IPv6 address: "
            "[2001:db8::1]:80",
        ),
        (
            "services:\n- vip: '10.0.0.10:80: '",
            "f:2: services[0].vip: port ' ' is not a number from 1 to 65535",
        ),
        (
            "services:\n- vip: 10.0.0.10:8010-8000",
            "f:2: services[0].vip: '10.0.0.10:8010-8000' is a descending range"
            " (expected IP:LOW-HIGH)",
        ),
        (
            "services:\n- vip: 10.0.0.10:8000-70000",
            "f:2: services[0].vip: port '70000' is not a number from 1 to 65535",
        ),
        (
            "services:\n- vip:\n  - 10.0.0.10:80\n  - 10.0.0.256:80",
            "f:4: services[0].vip[1]: '10.0.0.256' is not an IP address",
        ),
        (
            "services:\n- vip: '[fe80::1%eth0]:80'",
            "f:2: services[0].vip: 'fe80::1%eth0' is not an IP address",
        ),
        # The other keys of a service.
        (
            f"{SERVICE}  protocol: sctp",
            "f:3: services[0].protocol: 'sctp' is unknown (expected tcp or udp)",
        ),
        (
            f"{SERVICE}  protocol: 6",
            "f:3: services[0].protocol: 6 is a number (expected tcp or udp)",
        ),
        (f"{SERVICE}  nat: on", "f:3: services[0].nat: 'on' is unknown (expected dnat or full)"),
        (
            f"{SERVICE}  nat: true",
            "f:3: services[0].nat: true is a boolean (expected dnat or full)",
        ),
        (
            f"{SERVICE}  scheduler: maglef",
            "f:3: services[0].scheduler: unknown scheduler 'maglef', did you mean 'maglev'? "
            f"(known: {SCHEDULERS})",
        ),
        (
            f"{SERVICE}  scheduler: [rr]",
            "f:3: services[0].scheduler: this is a list (expected the name of a scheduler)",
        ),
        (
            f"{SERVICE}  nat: full\n  source_addresses: 10.0.0.2",
            "f:4: services[0].source_addresses: '10.0.0.2' is text (expected a list)",
        ),
        (
            f"{SERVICE}  nat: full\n  source_addresses: ['10.0.0.2:80', 10.0.0.2]",
            "f:4: services[0].source_addresses[0]: '10.0.0.2:80' is not an IP address",
        ),
        # Backends.
        (
            f"{SERVICE}  backends: 10.0.1.2:80",
            "f:3: services[0].backends: '10.0.1.2:80' is text (expected a list)",
        ),
        (
            f"{SERVICE}  backends:",
            "f:3: services[0].backends: the value is missing (expected a list)",
        ),
        (
            f"{BACKENDS}  - 80",
            "f:4: services[0].backends[0]: 80 is a number "
            "(expected HOST:PORT, or a mapping with address and weight)",
        ),
        (
            f"{BACKENDS}  - 10.0.0.300:80",
            "f:4: services[0].backends[0]: '10.0.0.300' is not an IP address",
        ),
        (
            f"{BACKENDS}  - 10.0.1.2",
            "f:4: services[0].backends[0]: '10.0.1.2' has no port (expected HOST:PORT, "
            "as the VIP has one port)",
        ),
        (
            f"{BACKENDS}  - 2001:db8::2",
            "f:4: services[0].backends[0]: '2001:db8::2' needs brackets around its IPv6 address:"
            " [2001:db8:]:2",
        ),
        (
            f"{BACKENDS}  - 10.0.1.2:9-8",
            "f:4: services[0].backends[0]: '10.0.1.2:9-8' is a descending range"
            " (expected HOST:LOW-HIGH)",
        ),
        (
            f"{BACKENDS}  - 'a b:80'",
            "f:4: services[0].backends[0]: 'a b' is neither an IP address nor a host name",
        ),
        (
            f"{BACKENDS}  - {{weight: 1}}",
            "f:4: services[0].backends[0]: 'address' is missing (expected HOST:PORT)",
        ),
        (
            f"{BACKENDS}  - address: 10.0.1.2:80\n    weight: -1",
            "f:5: services[0].backends[0].weight: -1 is too small "
            "(expected an integer from 0 to 65535)",
        ),
        (
            f"{BACKENDS}  - address: 10.0.1.2:80\n    weight: 65536",
            "f:5: services[0].backends[0].weight: 65536 is too large "
            "(expected an integer from 0 to 65535)",
        ),
        (
            f"{BACKENDS}  - address: 10.0.1.2:80\n    weight: true",
            "f:5: services[0].backends[0].weight: true is a boolean "
            "(expected an integer from 0 to 65535)",
        ),
        (
            f"{BACKENDS}  - address: 10.0.1.2:80\n    weight: 1.0",
            "f:5: services[0].backends[0].weight: 1.0 is a number "
            "(expected an integer from 0 to 65535)",
        ),
        (
            f"{BACKENDS}  - address: 10.0.1.2:80\n    weight: '3'",
            "f:5: services[0].backends[0].weight: '3' is text "
            "(expected an integer from 0 to 65535)",
        ),
        # The keys beside the services.
        (
            f"{SERVICE}queue: 65536",
            "f:3: queue: 65536 is too large (expected an integer from 0 to 65535)",
        ),
        (
            f"{SERVICE}queue: 65530\nworkers: 7",
            "f:3: queue: the last of 7 workers would have queue 65536 (expected at most 65535)",
        ),
        (
            f"{SERVICE}workers: 0",
            "f:3: workers: 0 is too small (expected an integer from 1 to 256)",
        ),
        (
            f"{SERVICE}workers: 010",
            "f:3: workers: '010' is text (expected an integer from 1 to 256)",
        ),
        (f"{SERVICE}fail_open: yes", "f:3: fail_open: 'yes' is text (expected true or false)"),
        (f"{SERVICE}fail_open: 1", "f:3: fail_open: 1 is a number (expected true or false)"),
        (
            f"{SERVICE}driver: pf",
            "f:3: driver: 'pf' is unknown (expected netlink or netfilterqueue)",
        ),
        (f"{SERVICE}hash_key: 5", f"f:3: hash_key: 5 is a number (expected {TEXT})"),
        (
            f"{SERVICE}hash_key: {'é' * 33}",
            "f:3: hash_key: '" + "\\xe9" * 33 + "' is too long (expected up to 64 bytes)",
        ),
        (
            f"{SERVICE}max_flows: 0",
            "f:3: max_flows: 0 is too small (expected an integer from 1 to 100000000)",
        ),
        (
            f"{SERVICE}timeouts: 30s",
            "f:3: timeouts: '30s' is text "
            "(expected a mapping with half_open, established, fin, closed, "
            "udp_one_way, udp_two_way)",
        ),
        (
            f"{SERVICE}timeouts: {{fin: 2d}}",
            f"f:3: timeouts.fin: '2d' is not a duration (expected {DURATION})",
        ),
        (
            f"{SERVICE}timeouts: {{fin: 0}}",
            f"f:3: timeouts.fin: 0 is too short (expected {DURATION})",
        ),
        (
            f"{SERVICE}  passive_health: {{failures: 0}}",
            "f:3: services[0].passive_health.failures: 0 is too small"
            " (expected an integer from 1 to 1000000)",
        ),
        (
            f"{SERVICE}  passive_health: {{share: 101}}",
            "f:3: services[0].passive_health.share: 101 is too large"
            " (expected an integer from 0 to 100)",
        ),
        (
            f"{SERVICE}  passive_health: {{ejections: 3s}}",
            "f:3: services[0].passive_health.ejections: unknown key (did you mean 'ejection'?)",
        ),
        (
            f"{SERVICE}  panic_threshold: 50%",
            "f:3: services[0].panic_threshold: '50%' is text (expected an integer from 0 to 100)",
        ),
        (
            f"{SERVICE}  scheduler: mh\n  hash_on: [src, ports]",
            "f:4: services[0].hash_on[1]: 'ports' is no part of a flow (expected src, sport, dst, "
            "dport, protocol, src/PREFIX, dns-name, sip-call-id, radius-user, quic-connection-id,"
            " or FILE.py:NAME)",
        ),
        (
            f"{SERVICE}  prefer: {{}}",
            "f:3: services[0].prefer: 'labels' is missing (expected a mapping such as {zone: a})",
        ),
        (
            f"{SERVICE}  prefer: {{labels: {{}}}}",
            "f:3: services[0].prefer.labels: there is no label (expected a mapping such as "
            "{zone: a})",
        ),
        (
            f"{SERVICE}  scheduler: mh\n  hash_on: dst/24",
            "f:4: services[0].hash_on: 'dst/24' is no part of a flow (expected src, sport, dst, "
            "dport, protocol, src/PREFIX, dns-name, sip-call-id, radius-user, quic-connection-id,"
            " or FILE.py:NAME)",
        ),
        (
            f"{SERVICE}  scheduler: mh\n  hash_balance: 100",
            "f:4: services[0].hash_balance: 100 is too small (expected an integer from 101 to "
            "1000)",
        ),
        (
            f"{BACKENDS}  - {{address: '10.0.1.2:80', labels: [a]}}",
            "f:4: services[0].backends[0].labels: this is a list (expected a mapping such as "
            "{zone: a, rack: r7})",
        ),
        (
            f"{BACKENDS}  - {{address: '10.0.1.2:80', labels: {{zone: a b}}}}",
            "f:4: services[0].backends[0].labels: 'a b' is no part of a label (expected letters, "
            "digits, `.`, `_`, `/` and `-`, up to 63)",
        ),
        (
            f"{BACKENDS}  - {{address: '10.0.1.2:80', labels: {{zone: 7}}}}",
            "f:4: services[0].backends[0].labels: 7 is a number (expected a mapping such as "
            "{zone: a, rack: r7}, of letters, digits, `.`, `_`, `/` and `-`, up to 63)",
        ),
        (
            f"{SERVICE}  slow_start: 0",
            f"f:3: services[0].slow_start: 0 is too short (expected {DURATION})",
        ),
        (
            f"{SERVICE}  backends: [{{address: 'a:1', role: spare}}]",
            "f:3: services[0].backends[0].role: 'spare' is unknown"
            " (expected primary or backup or sorry)",
        ),
        (
            f"{SERVICE}  backends: [{{address: 'a:1', max_connections: 0}}]",
            "f:3: services[0].backends[0].max_connections: 0 is too small"
            " (expected an integer from 1 to 100000000)",
        ),
        (
            f"{SERVICE}  health: {{type: tcp, initial: ejected}}",
            "f:3: services[0].health.initial: 'ejected' is unknown (expected up or down)",
        ),
        (
            f"{SERVICE}  health: {{type: tcp, path: /}}",
            "f:3: services[0].health: 'path' requires type http or https (this check has tcp)",
        ),
        (
            f"{SERVICE}  health: {{type: http, expect: pong}}",
            "f:3: services[0].health: 'expect' requires type udp (this check has http)",
        ),
        (
            f"{SERVICE}  health: {{type: script}}",
            "f:3: services[0].health: missing command (type script requires it)",
        ),
        (
            f"{SERVICE}  health: {{}}",
            "f:3: services[0].health: 'type' is missing"
            " (expected tcp or http or https or udp or script)",
        ),
        (
            f"{SERVICE}  health: {{type: ping}}",
            "f:3: services[0].health.type: 'ping' is unknown"
            " (expected tcp or http or https or udp or script)",
        ),
        (
            f"{SERVICE}  health: {{type: http, status: 399-200}}",
            "f:3: services[0].health.status: '399-200' is not a status"
            " (expected a status such as 200, or a range such as 200-399)",
        ),
        (
            f"{SERVICE}  health: {{type: http, path: health}}",
            "f:3: services[0].health.path: 'health' is not a path (expected one such as /health)",
        ),
        (
            f"{SERVICE}  health: {{type: udp, send: '€'}}",
            "f:3: services[0].health.send: '\\u20ac' contains characters that are not bytes"
            ' (expected text such as "\\x01ping")',
        ),
        (
            f"{SERVICE}  health: {{type: tcp, rise: 0}}",
            "f:3: services[0].health.rise: 0 is too small (expected an integer from 1 to 100)",
        ),
        (
            f"{SERVICE}  health: {{type: tcp, port: 80, address: 10.0.0.10}}\n"
            "  backends: ['10.0.0.1:80']",
            "f:2: services[0]: the health check of 10.0.0.1:80 would go to a VIP of service"
            " '10.0.0.10:80/tcp' (expected an address or port of the backend)",
        ),
        (
            f"{SERVICE}timeouts: {{fin: 0s}}",
            f"f:3: timeouts.fin: '0s' is too short (expected {DURATION})",
        ),
        (
            f"{SERVICE}timeouts: {{fin: -1}}",
            f"f:3: timeouts.fin: -1 is too short (expected {DURATION})",
        ),
        (
            f"{SERVICE}timeouts: {{fin: 721h}}",
            f"f:3: timeouts.fin: '721h' is too long (expected {DURATION})",
        ),
        (
            f"{SERVICE}timeouts: {{fin: true}}",
            f"f:3: timeouts.fin: true is a boolean (expected {DURATION})",
        ),
        (
            f"{SERVICE}  allow: []",
            "f:3: services[0].allow: the list is empty (expected at least one entry)",
        ),
        (
            f"{SERVICE}  deny:\n  - 10.0.0.0/8\n  - 10.0.0.1/8",
            "f:5: services[0].deny[1]: '10.0.0.1/8' has host bits set (expected 10.0.0.0/8)",
        ),
        (
            f"{SERVICE}  deny: [example.org]",
            "f:3: services[0].deny[0]: 'example.org' is not a network"
            " (expected one such as 10.0.0.0/8)",
        ),
        (
            f"{SERVICE}  deny: {{path: x}}",
            "f:3: services[0].deny: this mapping is no list of clients"
            " (expected a network such as 10.0.0.0/8, or {file: PATH})",
        ),
        (
            f"{SERVICE}  max_new: 50",
            "f:3: services[0].max_new: 50 is a number"
            " (expected a rate such as 50/s, or a mapping with rate, burst and prefix)",
        ),
        (
            f"{SERVICE}  max_new: 50/day",
            "f:3: services[0].max_new: '50/day' is not a rate"
            " (expected a rate such as 50/s, 600/m or 1000/h, at most 1000000)",
        ),
        (
            f"{SERVICE}  max_flows: {{prefix: 24}}",
            "f:3: services[0].max_flows[0]: 'limit' is missing (expected a number of flows)",
        ),
        (
            f"{SERVICE}  max_flows: {{limit: 5, actoin: reset}}",
            "f:3: services[0].max_flows: unknown key (did you mean 'action'?)",
        ),
    ],
)
def test_a_fault_is_one_exact_line(text: str, fault: str) -> None:
    assert faults_of(text) == [fault.replace(SCHEDULERS, ", ".join(names()))]


def test_all_faults_of_a_file_are_reported_in_the_order_of_their_lines() -> None:
    text = """\
timeouts: {fin: -1}
services:
- vip: 10.0.0.10:80
  scheduler: nothing
  backends:
  - {address: 10.0.1.2:80, weight: -1}
  - 10.0.1.2:80
  - 10.0.0.10:80
  - 10.0.0.300:80
  wieght: 3
- vip: [10.0.0.10:80, oops]
  nat: full
  nat: dnat
queue: x
"""
    assert [fault.split(": ")[0:2] for fault in faults_of(text)] == [
        ["f:1", "timeouts.fin"],
        ["f:4", "services[0].scheduler"],
        ["f:6", "services[0].backends[0].weight"],
        ["f:7", "services[0].backends[1]"],
        ["f:8", "services[0].backends[2]"],
        ["f:9", "services[0].backends[3]"],
        ["f:10", "services[0].wieght"],
        ["f:11", "services[1].vip[1]"],
        ["f:11", "services[1].vip[0]"],
        ["f:13", "duplicate key 'nat' (first on line 12)"],
        ["f:14", "queue"],
    ]


def test_a_service_that_is_not_understood_is_not_blamed_for_what_follows() -> None:
    """`protocol` and `nat` decide about other keys: no second fault out of a wrong guess."""
    text = f"{SERVICE}  nat: ful\n  source_addresses: [10.0.0.2]"
    assert faults_of(text) == [
        "f:3: services[0].nat: 'ful' is unknown, did you mean 'full'? (expected dnat or full)"
    ]


def test_a_service_without_a_right_vip_is_not_judged_further() -> None:
    text = "services:\n- vip: [oops, ouch]\n  backends: [10.0.0.1:80, 10.0.0.1:80]"
    assert faults_of(text) == [
        "f:2: services[0].vip[0]: 'oops' is not HOST:PORT",
        "f:2: services[0].vip[1]: 'ouch' is not HOST:PORT",
    ]


def test_a_fault_behind_an_alias_is_reported_once_per_place() -> None:
    text = (
        "services:\n- vip: 10.0.0.10:80\n  backends: &pool [oops]\n"
        "- vip: 10.0.0.11:80\n  backends: *pool\n"
    )
    assert faults_of(text) == [
        "f:3: services[0].backends[0]: 'oops' has no port (expected HOST:PORT, as "
        "the VIP has one port)",
        "f:3: services[1].backends[0]: 'oops' has no port (expected HOST:PORT, as "
        "the VIP has one port)",
    ]
