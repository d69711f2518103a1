"""scripts/check_layers.py, run as a program on small trees and on this one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEGAL = {
    "__init__.py": "",
    "errors.py": "from collections.abc import Sequence\n",
    "model.py": "import ipaddress\nfrom enum import IntEnum\n",
    "core/__init__.py": "",
    "core/flow.py": "import cython\nfrom featherlb import model\nfrom featherlb.core import nat\n",
    "core/nat.py": "from ..errors import HostError\nfrom . import flow\n",
    "core/scheduler/__init__.py": "import random\n",
    "config/__init__.py": "",
    "config/loader.py": "import os\nimport yaml\nfrom featherlb.core.scheduler import names\n",
    "config/schema.py": "import pydantic\nfrom .loader import read\n",
    "drivers/__init__.py": "",
    "drivers/base.py": "",
    "drivers/queue.py": "import socket\nimport netfilterqueue\nfrom . import base\n",
    "drivers/network.py": "from pyroute2 import IPRoute\n",
    "supervisor.py": "import asyncio\nfrom featherlb.drivers import network\n",
    "cli/__init__.py": "import click\nfrom featherlb import supervisor\n",
    "cli/replay.py": "def read():\n    import scapy.utils\n",
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
        ("errors.py", "from featherlb import model", "errors may import nothing of featherlb"),
        ("model.py", "import socket", "model does no I/O"),
        ("model.py", "from featherlb.errors import HostError", "model may import nothing"),
        ("core/flow.py", "import time", "core does no I/O"),
        ("core/flow.py", "from os import path", "core does no I/O"),
        ("core/flow.py", "import collections, logging", "may not import logging"),
        ("core/flow.py", "from featherlb.config import loader", "not config.loader"),
        ("core/flow.py", "from ..drivers import base", "not drivers.base"),
        ("core/flow.py", "from ..drivers.base import X", "not drivers.base"),
        ("core/scheduler/__init__.py", "from ...config import X", "not config"),
        ("core/flow.py", "import yaml", "yaml may be imported in config.loader config.writer"),
        (
            "config/schema.py",
            "import yaml",
            "yaml may be imported in config.loader config.writer",
        ),
        ("config/schema.py", "from featherlb.core import flow", "not core.flow"),
        ("config/schema.py", "from featherlb.drivers import network", "not drivers.network"),
        ("drivers/network.py", "from featherlb.core import flow", "not core.flow"),
        ("drivers/network.py", "from . import queue", "not drivers.queue"),
        ("drivers/network.py", "import netfilterqueue", "imported in drivers.network already"),
        ("supervisor.py", "import pyroute2", "pyroute2 may be imported in drivers only"),
        ("supervisor.py", "import scapy.all", "scapy may be imported in cli only"),
        ("supervisor.py", "import requests", "requests may be imported in no module only"),
        ("supervisor.py", "from featherlb.cli import main", "nobody imports cli"),
        ("core/flow.py", "def f():\n from featherlb import cli", "nobody imports cli"),
    ],
)
def test_each_violation_is_told_with_its_place(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    write(tmp_path, LEGAL | {name: f"\n{text}\n"})
    code, lines = run(tmp_path)
    assert code == 1
    assert len(lines) == 1
    where = f"featherlb/{name}:{2 + text.count(chr(10))}: "
    if "already" in said:  # the later of two importers in alphabetical order is told
        where = "featherlb/drivers/queue.py:2: "
    assert lines[0].startswith(where)
    assert said in lines[0]
