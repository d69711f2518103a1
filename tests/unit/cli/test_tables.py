"""Tables print addresses and names as they are, whatever rich makes of brackets and colons."""

import ast
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

import featherlb.cli.asking
import featherlb.cli.flows
import featherlb.cli.top
from featherlb.api import schema
from featherlb.cli import cli, top
from featherlb.control.log_level import LogLevel
from featherlb.model import PeerState, Role

ULA, LINK_LOCAL, EMOJI = "[fd74:1::2]:8080", "[fe80::1]:80", "[2001:db8:a::b]:443"
ADDRESSES = (ULA, LINK_LOCAL, EMOJI)
NAME = "web[blue] :a: [/]"


def backend(address: str) -> schema.Backend:
    return schema.Backend.model_construct(
        backend=address,
        address=address,
        state="up",
        role=Role.PRIMARY,
        weight=1,
        canary=0.0,
        effective_weight=1.0,
        active=0,
        max_connections=None,
        labels={},
        flows=1,
        packets_forward=0,
        packets_reply=0,
        bytes_forward=0,
        bytes_reply=0,
        resets=0,
        moved_refused=0,
        moved_silent=0,
        latency=0.0123,
        ports=100,
        ports_in_use=99,
        ports_reclaimed=7,
        refused=0,
        syn_timeouts=0,
        failure="",
    )


SERVICES = schema.Services.model_construct(
    services=[
        schema.Service.model_construct(
            name=NAME,
            vips=[ULA],
            protocol="tcp",
            scheduler="maglev",
            nat="dnat",
            datapath="nfqueue",
            opened_by="",
            panic=False,
            conditions=["deny fd74::/16"],
            refused={"not-allowed": 1234, "max-new": 0},
            faults=[],
            backends=[backend(address) for address in ADDRESSES],
        )
    ]
)
STATUS = schema.Status.model_construct(
    instance=0,
    pid=1,
    version="1",
    uptime=1.0,
    services=1,
    backends=3,
    labels={},
    absent=0,
    datapaths={"nfqueue": 1},
    opened_by={},
    flows=0,
    capacity=1,
    hash_key="/var/lib/featherlb/hash-key",
    log_level=LogLevel.INFO,
    log_level_remaining=None,
    changes=0,
    trials=[],
    faults=[],
    code_off=[],
    reloads=0,
    reloads_refused=1,
    last_reload="now",
    reload_error=f"no backend {ULA} in {NAME}",
    panic=[NAME],
    refused={NAME: {"not-allowed": 5, "max-flows": 0, "max-new": 0}},
    workers=[],
    worker_restarts=0,
    tasks=[],
    host=schema.HostState(
        restoring=False,
        deviations=[f"the VIP {ULA} is gone"],
        restored={"rules": 1},
        last_restored="now",
        repairs=f"restored VIP {ULA}",
    ),
    syn_cookies=schema.SynCookies(
        flooded=True, answering="workers", answered=0, missing="this kernel has no tcx (Linux 6.6)"
    ),
    cluster=schema.Cluster(
        node="lb1",
        ready=False,
        obstacles=["it leaves the cluster"],
        leaving=True,
        peers=[
            schema.Peer(
                address=ULA,
                node="lb2",
                state=PeerState.SYNCHRONISED,
                trouble="",
                heard=True,
                copied=True,
                ready=True,
                same=True,
                queued=0,
                dropped=0,
            )
        ],
        flows={"entered": 1},
        refused={},
    ),
    watchdog_fed=True,
)
STATS = schema.Stats.model_construct(
    received=0,
    translated=0,
    passed=0,
    dropped=0,
    reasons={},
    flows=0,
    flows_by_class={},
    martians=0,
    evicted=0,
    unkept_syns=0,
    scheduler_errors={NAME: 1},
    queues=[],
)
CLIENTS = schema.Clients.model_construct(
    clients=[schema.ClientShare.model_construct(client="fd74:1::2", flows=1, half_open=0)],
    refused=[schema.RefusedClient(client="fd74:1::3", service=NAME, packets=7)],
    sampled=1,
)
FLOWS = schema.Flows.model_construct(
    next=None,
    flows=[
        schema.Flow.model_construct(
            client=ULA,
            vip=LINK_LOCAL,
            backend=EMOJI,
            state="established",
            age=1.0,
            idle=1.0,
            bytes_forward=1,
            bytes_reply=1,
        )
    ],
)
CHANGES = schema.Changes.model_construct(
    changes=[
        schema.Change.model_construct(
            number=1,
            action="drain",
            service=NAME,
            backend=ULA,
            weight=None,
            remaining=None,
            deadline=125.0,
            canary=None,
            reason="",
        )
    ]
)


@pytest.mark.parametrize(
    ("command", "answer", "shown"),
    [
        (["backends"], SERVICES, [NAME, *ADDRESSES]),
        (["status"], STATUS, [NAME, ULA]),
        (["stats"], STATS, [NAME]),
        (["flows"], FLOWS, ADDRESSES),
        (["flows", "--clients"], CLIENTS, ["fd74:1::2", "fd74:1::3", NAME]),
        (["limit", "show"], SERVICES, [NAME, "deny fd74::/16", "1,234 not-allowed"]),
        (["backend", "changes"], CHANGES, [NAME, ULA, "2m05s"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_table_shows_what_it_is_given(
    monkeypatch: pytest.MonkeyPatch, command: list[str], answer: Any, shown: list[str]
) -> None:
    class Answering:
        """An instance that has one answer."""

        def get(self, *_: object) -> Any:
            return answer

    for module in (featherlb.cli.asking, featherlb.cli.flows):
        monkeypatch.setattr(module, "connect", lambda instance: Answering())
    monkeypatch.setattr("featherlb.cli.asking.NARROW", 200)
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert [text for text in shown if text not in result.output] == []
    assert [line for line in result.output.splitlines() if line != line.rstrip()] == []


def test_the_live_view_shows_what_it_is_given() -> None:
    now = top.Snapshot(0.0, STATUS, SERVICES, STATS, CLIENTS)
    console = featherlb.cli.asking.new_console(200)
    console.file = StringIO()
    console.print(top.draw(now, now))
    text = console.file.getvalue()
    assert [shown for shown in (NAME, "fd74:1::2", *ADDRESSES) if shown not in text] == []


@pytest.mark.parametrize("count", [1, 3])
def test_a_file_gets_every_picture_of_the_live_view(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    answers = {"status": STATUS, "services": SERVICES, "stats": STATS, "clients": CLIENTS}

    class Answering:
        def get(self, path: str, *_: object) -> Any:
            return answers[path.removeprefix("/v1/")]

    monkeypatch.setattr(top, "connect", lambda instance: Answering())
    result = CliRunner().invoke(cli, ["top", "--interval", "0.2", "--count", str(count)])
    assert result.exit_code == 0, result.output
    pictures = result.output.split("\n\nfeatherlb instance")
    assert len(pictures) == count
    for picture in pictures:
        assert picture.count("busiest clients") == 1
        lines = [line.split() for line in picture.splitlines()]
        assert ["fd74:1::2", "1", "100", "%"] in lines
        assert lines[-1] == ["fd74:1::3", *NAME.split(), "7"]
    assert result.output.endswith("7\n")
    assert "\x1b" not in result.output


def test_a_console_of_another_kind_would_not() -> None:
    """Otherwise the tests above could not fail."""
    console = Console(file=StringIO(), width=200)
    table = featherlb.cli.asking.new_table("address")
    for text in (ULA, EMOJI):
        table.add_row(text)
    console.print(table)
    assert isinstance(console.file, StringIO)
    assert ULA not in console.file.getvalue()


@pytest.mark.parametrize(
    "path", sorted(Path(featherlb.cli.asking.__file__).parent.glob("*.py")), ids=lambda it: it.stem
)
def test_every_console_is_of_that_kind(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = {ast.unparse(call.func): call for call in calls}
    assert "Console" not in named or path.stem == "asking"
    if "Live" in named:
        assert "console" in [keyword.arg for keyword in named["Live"].keywords]
