"""A datapath is a folder: what has to change for a new one, and that nothing else has to.

A copy of featherlb gets a datapath that it doesn't have, by the changes of `CHANGES` and no others.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import featherlb
from featherlb.datapaths.ebpf import requirements as ebpf_requirements
from featherlb.datapaths.ebpf import rules as ebpf_rules
from featherlb.datapaths.host_side import Requirements, Rules, requirements_of, rules_of
from featherlb.datapaths.nfqueue import requirements as nfqueue_requirements
from featherlb.datapaths.nfqueue import rules as nfqueue_rules
from featherlb.datapaths.offload import requirements as offload_requirements
from featherlb.datapaths.offload import rules as offload_rules
from featherlb.datapaths.raw import requirements as raw_requirements
from featherlb.datapaths.raw import rules as raw_rules
from featherlb.host.choose import BY_SPEED, ON_REQUEST
from featherlb.model import Datapath

PACKAGE = Path(featherlb.__file__).parent

NAME_MEMBERS = {"model/service.py": "the enum", "host/choose.py": "the order of `auto`"}
"""The modules that may name a datapath, other than those of its folder."""

IMPORT_FOLDERS = {"doctor/process.py": "tries both queue drivers"}
"""The modules outside the folders of datapaths that may import from one."""

CHANGES = {
    "model/service.py": ('    RAW = "raw"', '    TUNNEL = "tunnel"\n    RAW = "raw"'),
    "host/choose.py": ("BY_SPEED = (", "BY_SPEED = (Datapath.TUNNEL, "),
}
"""In existing modules, the text to replace, and by what."""

FOLDER = {
    "__init__.py": "",
    "engine.py": """
from featherlb.datapaths import base


class Engine(base.Engine):
    def __init__(self, context):
        pass
""",
    "rules.py": """
from featherlb.datapaths.host_side import Needs, Replies
from featherlb.datapaths.rules.queueing import Queued
from featherlb.system.ruleset import Action, Chain, Match, Rule, hooked


def replies(nat):
    return frozenset({Replies.UNTRACKED, Replies.QUEUED})


def queued(scope):
    parts = scope.parts("tunnel-")
    return Queued(parts=parts, replying=(parts.dnat_backends,), local_only=True)


def needs(scope, queued):
    rule = Rule(Match(mark=scope.family), Action.DROP)
    chain = Chain("TUNNEL", scope.options.queue)
    return Needs(
        settings=(("net/ipv4/tunnel", "1"),),
        rules={"raw": hooked(chain, "PREROUTING", [rule])},
    )
""",
    "requirements.py": """
def obstacles(services):
    for service in services:
        if service.mss is not None:
            yield "a tunnel has an MTU of its own, which leaves no choice to `mss`"


def limits(services, options, facts):
    if len(services) > 1:
        yield "there is one tunnel only"
""",
}
"""The new datapath. What an engine does without a method of its own is nothing."""

PROGRAM = """
import sys
from dataclasses import replace
from featherlb import host
from featherlb.datapaths.base import Engine, open_engine
from featherlb.datapaths.host_side import requirements_of
from featherlb.host.claims import conflict
from featherlb.model import Backend, Datapath, Endpoint, Protocol, Service, Vip
from featherlb.system.journal import Record

assert host.__file__.startswith(sys.argv[1]), host.__file__
end = Endpoint.parse
service = Service(
    "web",
    Protocol.TCP,
    (Vip(end("10.0.0.10:80").address, 80, 80),),
    (Backend(end("10.0.1.2:80")),),
    datapath=Datapath("tunnel"),
)
plan = host.build([service], host.Options(), host.Facts())
lines = plan.describe()
assert "sysctl -w net.ipv4.tunnel=1" in lines
assert "iptables -t raw -A FEATHERLB-TUNNEL-0 -m mark --mark 0x4 -j DROP" in lines
# Clients on this host are served through the queue.
assert "iptables -t raw -A FEATHERLB-FORWARD-0 -j NFQUEUE --queue-num 0" in lines

assert host.usable([service])[service.datapath] is None
clamped = replace(service, mss=1200)
assert "an MTU of its own" in host.usable([clamped])[service.datapath]
(picked,) = host.pick([replace(service, datapath=Datapath("nfqueue"))], {"web"}, {})
assert picked == service
assert host.pick([clamped], {"web"}, {})[0].datapath is not service.datapath
limits = requirements_of(service.datapath).limits
found = list(limits([service, clamped], host.Options(), host.Facts()))
assert found == ["there is one tunnel only"]

def beside(other):
    ours = {name: tuple(backends) for name, backends in plan.claims.items()}
    record = Record(1, 1, 4242, 0, (), (), 0, (), (), claims=ours)
    return conflict([replace(service, datapath=Datapath(other))], record)

assert isinstance(open_engine(service.datapath, context=None), Engine)
assert beside("tunnel") is None and beside("nfqueue") is None
assert "uses the datapath offload" in beside("offload")
assert "uses the datapath raw" in beside("raw")
"""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(), str(path))


def in_a_folder(module: str) -> bool:
    return any(module.startswith(f"datapaths/{datapath}/") for datapath in Datapath)


def test_a_datapath_is_named_in_its_folder_only() -> None:
    members = set(Datapath.__members__)
    naming = {
        module
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in members
        and isinstance(node.value, ast.Name | ast.Attribute)
        and ast.unparse(node.value).split(".")[-1] == "Datapath"
    }
    assert {module for module in naming if not in_a_folder(module)} == NAME_MEMBERS.keys()


def test_a_datapaths_folder_is_imported_from_nowhere() -> None:
    folders = tuple(f"featherlb.datapaths.{datapath}" for datapath in Datapath)
    importing = {
        module
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(folders)
    }
    assert {module for module in importing if not in_a_folder(module)} == IMPORT_FOLDERS.keys()


def test_each_datapath_has_its_host_side() -> None:
    rules: dict[Datapath, Rules] = {
        Datapath.NFQUEUE: nfqueue_rules,
        Datapath.RAW: raw_rules,
        Datapath.OFFLOAD: offload_rules,
        Datapath.EBPF: ebpf_rules,
    }
    requirements: dict[Datapath, Requirements] = {
        Datapath.NFQUEUE: nfqueue_requirements,
        Datapath.RAW: raw_requirements,
        Datapath.OFFLOAD: offload_requirements,
        Datapath.EBPF: ebpf_requirements,
    }
    assert {datapath: rules_of(datapath) for datapath in Datapath} == rules
    assert {datapath: requirements_of(datapath) for datapath in Datapath} == requirements
    assert sorted((*BY_SPEED, *ON_REQUEST)) == sorted(Datapath)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with featherlb's sources and the new datapath."""
    directory = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        PACKAGE,
        directory / "featherlb",
        ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"),
    )
    for name, (before, after) in CHANGES.items():
        path = directory / "featherlb" / name
        text = path.read_text()
        assert text.count(before) == 1
        path.write_text(text.replace(before, after))
    folder = directory / "featherlb/datapaths/tunnel"
    folder.mkdir()
    for name, text in FOLDER.items():
        (folder / name).write_text(text)
    return directory


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy), "FEATHERLB_PURE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=copy, capture_output=True, text=True
    )


def test_the_host_runs_a_new_datapath(copy: Path) -> None:
    done = run(copy, "-c", PROGRAM, str(copy))
    assert done.returncode == 0, done.stderr


def test_a_configuration_may_ask_for_a_new_datapath(copy: Path) -> None:
    (copy / "new.yaml").write_text(
        "services: [{name: web, vip: 10.0.0.10:80, datapath: tunnel, backends: [10.0.1.2:80]}]\n"
    )
    done = run(copy, "-m", "featherlb", "check", "new.yaml")
    assert done.returncode == 0, done.stderr
    assert "tunnel" in run(copy, "-m", "featherlb", "up", "--help").stdout
