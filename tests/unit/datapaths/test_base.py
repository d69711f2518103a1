"""Datapaths are found by their folders."""

import errno
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

import pytest

from featherlb import datapaths
from featherlb.datapaths.base import Context, Engine, PacketQueue, open_engine
from featherlb.model import DEFAULT_DATAPATH, Datapath
from featherlb.model.errors import HostError

CONTEXT = cast(Context, None)


@pytest.mark.parametrize("datapath", Datapath)
def test_every_datapath_has_an_engine(datapath: Datapath) -> None:
    engine = import_module(f"featherlb.datapaths.{datapath}.engine").Engine
    assert issubclass(engine, Engine)
    assert issubclass(engine, PacketQueue) == (datapath is DEFAULT_DATAPATH)


@pytest.fixture
def dummy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of another datapath."""
    monkeypatch.setattr(datapaths, "__path__", [*datapaths.__path__, str(tmp_path)])
    folder = tmp_path / "dummy"
    folder.mkdir()
    (folder / "__init__.py").touch()
    yield folder
    for name in [name for name in sys.modules if name.startswith("featherlb.datapaths.dummy")]:
        del sys.modules[name]


def test_a_folder_is_all_that_a_worker_needs(dummy: Path) -> None:
    (dummy / "engine.py").write_text(
        "from featherlb.datapaths import base\n"
        "class Engine(base.Engine):\n"
        "    def __init__(self, context):\n"
        "        self.context = context\n"
    )
    engine = open_engine(cast(Datapath, "dummy"), CONTEXT)
    # What it does not have does nothing.
    assert engine.descriptors() == ()
    engine.tick(0.0)
    engine.close()


def test_a_host_that_refuses_it_is_named(dummy: Path) -> None:
    (dummy / "engine.py").write_text(
        f"def Engine(context):\n    raise OSError({errno.EPROTONOSUPPORT}, 'Protocol unknown')\n"
    )
    with pytest.raises(HostError, match=r"^the datapath dummy is unavailable here: Protocol unkno"):
        open_engine(cast(Datapath, "dummy"), CONTEXT)
