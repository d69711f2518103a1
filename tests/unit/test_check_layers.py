"""scripts/check_layers.py, run as a program on small trees and on this one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEGAL = {
    "__init__.py": "from featherlb import compiled\n",
    "compiled.py": "import os\n",
    "model/__init__.py": "from .service import Service\n",
    "model/service.py": "import ipaddress\nfrom enum import IntEnum\n",
    "model/errors.py": "from collections.abc import Sequence\n",
    "net/packet.py": "import cython\nfrom featherlb import model\n",
    "core/__init__.py": "",
    "core/pools/pool.py": "import random\n",
    "core/flows/table.py": "import cython\nfrom featherlb import model\nfrom ..pools import pool\n",
    "core/path/nat.py": "from ...net import packet\nfrom ..flows import table\n",
    "config/__init__.py": "",
    "config/loader.py": "import os\nimport yaml\nfrom featherlb.core.pools import pool\n",
    "config/schema.py": "import pydantic\nfrom .loader import read\n",
    "system/nftables.py": "from pyroute2.nftables.main import NFTables\n",
    "system/rtnetlink.py": "import socket\n",
    "datapaths/base.py": "",
    "datapaths/nfqueue/queue.py": "import socket\nimport netfilterqueue\nfrom .. import base\n",
    "host/survey.py": "from featherlb.system import rtnetlink\n",
    "worker/loop.py": "from featherlb.datapaths.nfqueue import queue\n",
    "control/controller.py": "import asyncio\nfrom featherlb.worker import loop\n",
    "daemon.py": "import asyncio\nfrom featherlb.control import controller\n",
    "lab/__init__.py": "import pyroute2\n",
    "cli/__init__.py": "import click\nfrom featherlb import daemon, lab\n",
    "__main__.py": "from featherlb.cli import main\n",
}


def run(root: Path) -> tuple[int, list[str]]:
    process = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_layers.py", root], capture_output=True, text=True
    )
    assert process.stderr == ""
    return process.returncode, process.stdout.splitlines()


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "featherlb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_this_project_keeps_its_layers() -> None:
    assert run(ROOT) == (0, [])


def test_a_legal_tree_is_silent(tmp_path: Path) -> None:
    write(tmp_path, LEGAL)
    assert run(tmp_path) == (0, [])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model/service.py", "import socket", "model does no I/O"),
        ("model/service.py", "from featherlb.net import packet", "model may not import net.packet"),
        ("net/packet.py", "import time", "net does no I/O"),
        ("core/flows/table.py", "import time", "core does no I/O"),
        ("core/flows/table.py", "from os import path", "core does no I/O"),
        ("core/flows/table.py", "import collections, logging", "may not import logging"),
        ("core/pools/pool.py", "from ..flows import table", "core.pools may not import core.flows"),
        ("core/flows/table.py", "from ..path import nat", "core.flows may not import core.path"),
        ("core/flows/table.py", "from ..path.nat import X", "may not import core.path.nat"),
        ("core/path/nat.py", "from ...config import loader", "may not import config.loader"),
        ("core/path/nat.py", "from ...system import rtnetlink", "may not import system.rtnetlink"),
        ("core/path/nat.py", "import yaml", "yaml may be imported in config.loader config.writer"),
        ("config/schema.py", "import yaml", "yaml may be imported in config.loader config.writer"),
        ("config/schema.py", "from featherlb.system import rtnetlink", "config may not import"),
        ("system/rtnetlink.py", "from featherlb.config import loader", "system may not import"),
        ("system/rtnetlink.py", "from featherlb.host import survey", "system may not import host"),
        ("host/survey.py", "from featherlb.worker import loop", "host may not import worker.loop"),
        ("host/survey.py", "import netfilterqueue", "netfilterqueue may be imported in datapaths"),
        ("daemon.py", "import pyroute2", "pyroute2 may be imported in system.nftables lab"),
        ("system/rtnetlink.py", "import pyroute2", "pyroute2 may be imported in system.nftables"),
        ("daemon.py", "import scapy.all", "scapy may be imported in no module only"),
        ("daemon.py", "from featherlb.cli import main", "daemon may not import cli"),
        ("lab/__init__.py", "from featherlb import model", "lab may not import model"),
        ("host/survey.py", "from featherlb import lab", "host may not import lab"),
        ("core/flows/table.py", "def f():\n from featherlb import cli", "may not import cli"),
    ],
)
def test_each_violation_is_told_with_its_place(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    write(tmp_path, LEGAL | {name: f"\n{text}\n"})
    code, lines = run(tmp_path)
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"featherlb/{name}:{2 + text.count(chr(10))}: ")
    assert said in lines[0]


def test_a_library_that_one_module_keeps_to_itself_is_imported_there_only(tmp_path: Path) -> None:
    write(tmp_path, LEGAL | {"datapaths/nfqueue/another.py": "import netfilterqueue\n"})
    code, lines = run(tmp_path)
    assert code == 1
    assert len(lines) == 1
    # The later of two importers in alphabetical order is told.
    assert lines[0].startswith("featherlb/datapaths/nfqueue/queue.py:2: ")
    assert "imported in datapaths.nfqueue.another already" in lines[0]
