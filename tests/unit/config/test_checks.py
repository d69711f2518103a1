"""What no single value shows: one small document per fault, with its exact line."""

import pytest

from featherlb.config.checks import advise
from featherlb.config.file import parse
from featherlb.model.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            "- {name: a, vip: '10.0.0.1:80'}\n- {name: a, vip: '10.0.0.2:80'}",
            ["f:3: services[1].name: the name 'a' is taken by another service (line 2)"],
        ),
        # VIPs that overlap.
        (
            "- vip: 10.0.0.1:80\n- vip: 10.0.0.1:80",
            [
                "f:3: services[1].vip: 10.0.0.1:80 overlaps with the VIP 10.0.0.1:80 "
                "of service '10.0.0.1:80/tcp' (line 2)"
            ],
        ),
        (
            "- vip: [10.0.0.1:80, 10.0.0.1:80]",
            [
                "f:2: services[0].vip[1]: 10.0.0.1:80 overlaps with the VIP 10.0.0.1:80 "
                "of this service (line 2)"
            ],
        ),
        (
            "- vip: 10.0.0.1:8000-8010\n- {name: b, vip: '10.0.0.1:8010-8020'}",
            [
                "f:3: services[1].vip: 10.0.0.1:8010-8020 overlaps with the VIP "
                "10.0.0.1:8000-8010 of service '10.0.0.1:8000-8010/tcp' (line 2)"
            ],
        ),
        (
            "- {name: all, vip: '0.0.0.0:80'}\n- vip: 10.0.0.1:80",
            [
                "f:3: services[1].vip: 10.0.0.1:80 overlaps with the VIP 0.0.0.0:80 "
                "of service 'all' (line 2)"
            ],
        ),
        (
            "- {name: one, vip: '10.0.0.1:80'}\n- vip: 0.0.0.0:70-90",
            [
                "f:3: services[1].vip: 0.0.0.0:70-90 overlaps with the VIP 10.0.0.1:80 "
                "of service 'one' (line 2)"
            ],
        ),
        # Backends that lead back.
        (
            "- {vip: '10.0.0.1:80', backends: ['10.0.0.1:80']}",
            [
                "f:2: services[0].backends[0]: 10.0.0.1:80 is a VIP of service "
                "'10.0.0.1:80/tcp' (expected a server of its pool)"
            ],
        ),
        (
            "- {vip: '10.0.0.1:80', backends: ['10.0.0.2:85']}\n- {name: b, vip: '10.0.0.2:80-90'}",
            [
                "f:2: services[0].backends[0]: 10.0.0.2:85 is a VIP of service 'b' "
                "(expected a server of its pool)"
            ],
        ),
        (
            "- {name: a, vip: '0.0.0.0:80', backends: ['127.0.0.1:80']}",
            [
                "f:2: services[0].backends[0]: 127.0.0.1:80 is a VIP of service 'a' "
                "(expected a server of its pool)"
            ],
        ),
        # Backends listed twice.
        (
            "- vip: 10.0.0.1:80\n  backends:\n  - 10.0.1.1:80\n  - {address: '10.0.1.1:80'}",
            [
                "f:5: services[0].backends[1].address: 10.0.1.1:80 is already a backend of "
                "this service (line 4)"
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  backends: [web:80, web:80]",
            ["f:3: services[0].backends[1]: web:80 is already a backend of this service (line 3)"],
        ),
        # Options of the other protocol, of the other family, or against each other.
        (
            "- {name: a, vip: '10.0.0.1:80', one_packet: true, responses: 0}",
            [
                "f:2: services[0].one_packet: 'one_packet' requires protocol udp (this "
                "service has tcp)",
                "f:2: services[0].responses: 'responses' requires protocol udp (this "
                "service has tcp)",
            ],
        ),
        (
            "- {name: a, vip: '10.0.0.1:53', protocol: udp, mss: 1400}",
            ["f:2: services[0].mss: 'mss' requires protocol tcp (this service has udp)"],
        ),
        (
            "- vip: 10.0.0.1:53\n  protocol: udp\n  one_packet: true\n  persistence: {}",
            [
                "f:5: services[0].persistence: persistence and one_packet exclude each other "
                "(expected one of them)"
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  persistence: {prefix: 33}",
            [
                "f:3: services[0].persistence: 33 is too long a prefix for 10.0.0.1 "
                "(expected at most 32 with IPv4)"
            ],
        ),
        # Families.
        (
            "- {vip: '10.0.0.1:80', backends: ['[2001:db8::1]:80']}",
            [
                "f:2: services[0].backends[0]: 2001:db8::1 is IPv6 and 10.0.0.1 is IPv4 "
                "(expected IPv4 throughout)"
            ],
        ),
        (
            "- vip: ['[2001:db8::1]:80', '10.0.0.1:80']",
            [
                "f:2: services[0].vip[1]: 10.0.0.1 is IPv4 and 2001:db8::1 is IPv6 "
                "(expected IPv6 throughout)"
            ],
        ),
        (
            "- {vip: '10.0.0.1:80', nat: full, source_addresses: ['2001:db8::1']}",
            [
                "f:2: services[0].source_addresses[0]: 2001:db8::1 is IPv6 and 10.0.0.1 is IPv4 "
                "(expected IPv4 throughout)"
            ],
        ),
        # Addresses that no host has.
        (
            "- vip: 224.0.0.1:80",
            [
                "f:2: services[0].vip: 224.0.0.1 is a multicast address "
                "(expected an address of one host)"
            ],
        ),
        (
            "- vip: 255.255.255.255:80",
            [
                "f:2: services[0].vip: 255.255.255.255 is the broadcast address "
                "(expected an address of one host)"
            ],
        ),
        (
            "- vip: '[::ffff:10.0.0.1]:80'",
            [
                "f:2: services[0].vip: ::ffff:a00:1 is an IPv4-mapped address: write 10.0.0.1 "
                "(expected an address of one host)"
            ],
        ),
        (
            "- {vip: '10.0.0.1:80', backends: ['0.0.0.0:80', '224.0.0.1:80']}",
            [
                "f:2: services[0].backends[0]: 0.0.0.0 is not the address of a host "
                "(expected an address of one host)",
                "f:2: services[0].backends[1]: 224.0.0.1 is a multicast address "
                "(expected an address of one host)",
            ],
        ),
        # Limits and times that can't work.
        (
            "- vip: 10.0.0.1:80\n  backends: [{address: '10.0.1.1:80', max_connections: 3}]\n"
            "workers: 4",
            [
                "f:3: services[0].backends[0].address: 4 workers can't share 3 connections of "
                "10.0.1.1:80 (expected max_connections of 4 or more)"
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  scheduler: ovf\n  backends: [{address: '10.0.1.1:80'}]\n"
            "workers: 2",
            [
                "f:4: services[0].backends[0].address: 2 workers can't share 1 connection of "
                "10.0.1.1:80 (expected a weight of 2 or more)"
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  scheduler: wlc\n  hash_on: src\n  hash_balance: 125",
            [
                f"f:{line}: services[0].{key}: '{key}' has no effect with "
                "weighted-least-connections, which hashes no flows (expected a scheduler such as "
                "maglev or source-hash)"
                for line, key in ((4, "hash_on"), (5, "hash_balance"))
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  scheduler: mh\n  hash_on: [src/48, sport, src]",
            [
                "f:4: services[0].hash_on: 'src' is listed twice",
                "f:4: services[0].hash_on: src/48 is too long a prefix for IPv4 (expected at most "
                "32)",
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  scheduler: mh\n  slow_start: 9s",
            [
                "f:4: services[0].slow_start: 'slow_start' has no effect with maglev, whose "
                "picks don't "
                "depend on time (expected another scheduler)"
            ],
        ),
        (
            "- {vip: '10.0.0.1:80', protocol: udp, passive_health: {}}",
            [
                "f:2: services[0].passive_health: 'passive_health' requires protocol tcp "
                "(this service has udp)"
            ],
        ),
        # Source addresses.
        (
            "- {vip: '10.0.0.1:80', source_addresses: ['10.0.0.2']}",
            [
                "f:2: services[0].source_addresses[0]: source addresses require full NAT "
                "(expected nat: full)"
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  nat: full\n"
            "  source_addresses: [10.0.0.2, 10.0.0.2, 0.0.0.0, 224.0.0.1]",
            [
                "f:4: services[0].source_addresses[1]: 10.0.0.2 is listed twice",
                "f:4: services[0].source_addresses[2]: 0.0.0.0 is not an address "
                "(expected one of this host)",
                "f:4: services[0].source_addresses[3]: 224.0.0.1 is a multicast address "
                "(expected an address of this host)",
            ],
        ),
        (
            "- vip: [10.0.0.1:8000-8009, 10.0.0.2:8010-8019]\n"
            "  backends: ['10.0.1.1:9000-9008', '10.0.1.2:9000-9009']",
            [
                "f:3: services[0].backends[0]: 10.0.1.1:9000-9008 has 9 ports, the VIP "
                "10.0.0.1:8000-8009 has 10 (expected as many)",
                "f:3: services[0].backends[1]: 10.0.1.2:9000-9009 can't have the ports of both "
                "10.0.0.1:8000-8009 and 10.0.0.2:8010-8019 (expected VIPs with the same ports)",
            ],
        ),
        (
            "- vip: 10.0.0.1:8000-8009\n"
            "  backends: [10.0.1.1, '10.0.1.1:8005', '10.0.1.2:90-99', '10.0.1.2:80-89',"
            " '10.0.1.2:85-94']",
            [
                "f:3: services[0].backends[0]: 10.0.1.1 has ports of the backend 10.0.1.1:8005 "
                "(line 3)",
                "f:3: services[0].backends[3]: 10.0.1.2:80-89 has ports of the backend "
                "10.0.1.2:85-94 (line 3)",
                "f:3: services[0].backends[4]: 10.0.1.2:85-94 has ports of the backend "
                "10.0.1.2:90-99 (line 3)",
            ],
        ),
        (
            "- vip: 10.0.0.1:8000-8009\n  backends: [10.0.0.1]",
            [
                "f:3: services[0].backends[0]: 10.0.0.1 is a VIP of service "
                "'10.0.0.1:8000-8009/tcp' (expected a server of its pool)"
            ],
        ),
        (
            "- vip: 0.0.0.0:*",
            [
                "f:2: services[0].vip: 0.0.0.0:* would take every connection of this host "
                "(expected the address of a VIP)"
            ],
        ),
        (
            "- {name: all, vip: '10.0.0.1:*'}\n- vip: 10.0.0.1:*\n- vip: 0.0.0.0:80",
            [
                "f:3: services[1].vip: 10.0.0.1:* overlaps with the VIP 10.0.0.1:* of service "
                "'all' (line 2)",
                "f:4: services[2].vip: 0.0.0.0:80 overlaps with the VIP 10.0.0.1:* of service "
                "'all' (line 2)",
            ],
        ),
        (
            "- {name: all, vip: '10.0.0.1:*', health: {type: tcp}, backends: [10.0.1.1]}",
            [
                "f:2: services[0].name: which of the ports of 10.0.1.1 the health check asks is "
                "unclear (expected 'port' in 'health')"
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  allow: ['fd00::/8']\n  max_flows: [5, {limit: 6, prefix: 32}]\n"
            "  max_new: [{rate: 5/s, prefix: 64}]",
            [
                "f:3: services[0].allow: 'allow' has no IPv4 network, so no client could connect "
                "(expected one at least)",
                "f:4: services[0].max_flows: two limits have the prefix 32 (expected one for each)",
                "f:5: services[0].max_new: 64 is too long a prefix for IPv4 (expected at most 32)",
            ],
        ),
        (
            "- {name: web, vip: 10.0.0.1:80, max_flows: [{limit: 3, prefix: 0}]}\nworkers: 4",
            [
                "f:2: services[0].max_flows: 4 workers can't share 3 flows of 'web' "
                "(expected a limit of 4 or more)"
            ],
        ),
        (
            "- {vip: 10.0.0.1:80, datapath: offload, backends: ['10.0.1.2:80']}\n"
            "- {vip: 10.0.0.1:81, datapath: ebpf, backends: ['10.0.1.2:80']}\n"
            "- vip: 10.0.0.1:82\n  nat: full\n  source_addresses: [10.0.0.1]\n"
            "workers: 2\n"
            "cluster: {node: a, listen: '0.0.0.0:7946',"
            " source_addresses: {b: 10.0.0.2, c: 10.0.0.2}}",
            [
                "f:2: services[0].datapath: flows of the datapath offload can't go on at another "
                "node (expected nfqueue, raw or auto in a cluster)",
                "f:3: services[1].datapath: flows of the datapath ebpf can't go on at another node "
                "(expected nfqueue, raw or auto in a cluster)",
                "f:5: services[2].nat: in a cluster, `nat: full` works with one worker only "
                "(expected workers: 1, or nat: dnat)",
                "f:5: services[2].nat: with `nat: full`, node a needs an IPv4 source address "
                "(expected `source_addresses` in `cluster`, with those of all nodes by name)",
                "f:6: services[2].source_addresses[0]: in a cluster, source addresses belong to "
                "nodes, not to a service (expected `source_addresses` in `cluster`)",
                "f:8: cluster: a cluster's node can't listen on 0.0.0.0:7946 "
                "(expected an address that its peers know)",
                "f:8: cluster: nodes b and c have the source address 10.0.0.2 "
                "(expected addresses of each node's own)",
            ],
        ),
    ],
)
def test_faults_between_values(text: str, faults: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(f"services:\n{text}", "f")
    assert list(raised.value.faults) == faults


@pytest.mark.parametrize(
    "text",
    [
        "- vip: 10.0.0.1:80\n- vip: 10.0.0.1:81\n- vip: 10.0.0.2:80",
        "- vip: 0.0.0.0:80\n- vip: '[::]:80'\n- vip: '[2001:db8::1]:81'",
        "- vip: 10.0.0.1:8000-8010\n- vip: 10.0.0.1:8011-8020",
        "- {vip: '10.0.0.1:80', backends: ['10.0.0.1:8080', '127.0.0.1:80']}",
        "- {vip: '0.0.0.0:80', backends: ['127.0.0.1:8080', '10.0.0.9:80']}",
        "- {vip: '10.0.0.1:80', backends: ['10.0.1.1:80', '10.0.1.1:81', 'web:80']}",
        "- {vip: '10.0.0.1:80', backends: [{address: '10.0.1.1:80', weight: 0}]}",
        "- {vip: '10.0.0.1:80', backends: []}",
        "- {vip: '10.0.0.1:80', scheduler: mh, hash_balance: 150, slow_start: 9s}",
        "- {vip: '[2001:db8::1]:80', scheduler: mh, hash_on: [src/64, dst, protocol]}",
        "- {vip: '10.0.0.1:80', nat: full, source_addresses: ['10.0.0.1']}",
        "- {vip: '10.0.0.1:8000-8009', backends: ['10.0.1.1', '10.0.1.2:9000-9009', 'web']}",
        "- {vip: ['10.0.0.1:21', '10.0.0.1:8000-8009'], backends: ['10.0.1.1', '10.0.1.2:80']}",
        "- {vip: '10.0.0.1:*', backends: ['10.0.1.1']}\n- vip: [10.0.0.1:80, 10.0.0.1:8000-8009]",
        "- {vip: '10.0.0.1:*', health: {type: tcp, port: 80}, backends: ['10.0.1.1']}",
        "- {vip: '10.0.0.1:*', health: {type: script, command: a}, backends: ['10.0.1.1']}",
        "- {vip: '10.0.0.1:80', nat: full, datapath: auto}\n"
        "cluster: {node: a, listen: '10.0.0.1:7', peers: ['10.0.0.1:7', '10.0.0.2:7'],"
        " source_addresses: {a: [10.0.0.1, '::1'], b: 10.0.0.2}}",
        "- {vip: '10.0.0.1:80-89', health: {type: tcp}, backends: ['10.0.1.1', '10.0.1.2:1-10']}",
    ],
)
def test_what_only_looks_like_a_fault_is_accepted(text: str) -> None:
    assert parse(f"services:\n{text}", "f").services


def test_a_warning_where_no_backend_is_preferred() -> None:
    text = (
        "services:\n- vip: 10.0.0.1:80\n  prefer: {labels: {zone: b, rack: r1}}\n"
        "  backends: [{address: '10.0.1.1:80', labels: {zone: LABEL}}]\n"
    )
    (warning,) = advise(parse(text.replace("LABEL", "a"), "f"))
    assert str(warning.origin).startswith("f:3")
    assert warning.text == (
        "no backend is labelled zone=b, rack=r1: none is preferred (expected 'labels' of backends)"
    )
    assert list(advise(parse(text.replace("LABEL", "b, rack: r1"), "f"))) == []
