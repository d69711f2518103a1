"""Custom schedulers from real files and real installed metadata."""

import sys
from pathlib import Path

import pytest

from featherlb.core.pools.schedulers import NewFlow, UserScheduler, create, names
from featherlb.model.errors import ConfigError
from featherlb.model.user_code import CodeKind, UserCode
from featherlb.system import plugins
from tests.unit.core.pools.schedulers.pools import KEY, make_flow, make_pool

FUNCTION = "def pick(flow, backends):\n    return backends[flow.client_port % len(backends)]\n"
CLASS = """
from featherlb.core.pools.schedulers import Scheduler

class First(Scheduler):
    consistent = True
    def __init__(self, *, seed, key):
        self.members = []
    def update(self, members):
        self.members = members
    def pick(self, flow):
        return self.members[0]
"""


def picked(name: str, flow: NewFlow) -> int | None:
    """The position of the member that a scheduler picks out of three."""
    scheduler = create(name, seed=1, key=KEY)
    pool = make_pool(1, 1, 1)
    scheduler.update(pool)
    member = scheduler.pick(flow)
    assert isinstance(scheduler, UserScheduler)
    assert scheduler.first_error is None
    return pool.index(member) if member else None


def load(reference: str, kind: CodeKind = CodeKind.SCHEDULER) -> None:
    """As a process does that starts."""
    plugins.load(reference, UserCode(kind, plugins.read(reference)))


def test_a_function_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION)
    reference = f"{tmp_path}/mine.py:pick"
    load(reference)
    flow = make_flow(1)
    flow.client_port = 5
    assert picked(reference, flow) == 2


def test_a_class_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CLASS)
    reference = f"{tmp_path}/mine.py:First"
    load(reference)
    assert picked(reference, make_flow(1)) == 0
    assert create(reference, seed=1, key=KEY).consistent


def test_a_file_is_read_again(tmp_path: Path) -> None:
    reference = f"{tmp_path}/mine.py:pick"
    for position in (0, 1):
        (tmp_path / "mine.py").write_text(f"def pick(flow, backends): return backends[{position}]")
        load(reference)
        assert picked(reference, make_flow(1)) == position


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "{path} can't be read (no such file or directory): fix the path"),
        ("x = 1\ndef pick(:", "{path}:2: the scheduler does not load: SyntaxError: invalid syntax"),
        (
            "\nimport nonexistent_module",
            "{path}:2: the scheduler does not load: ModuleNotFoundError: No module named"
            " 'nonexistent_module'",
        ),
        (
            "def read():\n    open('/nonexistent')\nread()",
            "{path}:2: the scheduler does not load: FileNotFoundError: [Errno 2] No such file or"
            " directory: '/nonexistent'",
        ),
        ("\nint('no\\nnumber')", "{path}:2: the scheduler does not load: ValueError: invalid"),
        ("def choose(flow, backends): ...", "{path} defines no 'pick': add it"),
        ("\npick = 5", "{path}:2: 'pick' is neither a Scheduler class nor a function"),
        ("class pick: pass", "{path}:1: 'pick' is neither a Scheduler class nor a function"),
        ("\n\ndef pick(flow): ...", "{path}:3: 'pick' does not take two arguments"),
        (
            CLASS.replace("First", "pick").replace("def pick(", "def choose("),
            "{path}:4: 'pick' lacks one of the",
        ),
    ],
)
def test_faults_of_a_file_are_one_sentence_with_their_line(
    tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    reference = f"{path}:pick"
    with pytest.raises(ConfigError) as caught:
        load(reference)
    (fault,) = caught.value.faults
    assert fault.startswith(said.format(path=path))
    assert "\n" not in fault
    assert reference not in names()


def install(directory: Path, entry: str, module: str) -> None:
    """What pip leaves of a package: a module and its metadata."""
    info = directory / "geo-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: geo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[featherlb.schedulers]\n{entry}\n")
    (directory / "geo_scheduler_plugin.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "geo_scheduler_plugin", raising=False)
    return tmp_path


def test_entry_points_are_registered_by_their_names(site: Path) -> None:
    install(site, "geo = geo_scheduler_plugin:pick", FUNCTION)
    plugins.load_entry_points()
    assert "geo" in names()
    assert picked("geo", make_flow(1)) == 40000 % 3


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            "geo = geo_scheduler_plugin:missing",
            "(geo_scheduler_plugin:missing) fails to load",
        ),
        ("geo = nonexistent_plugin:pick", "fix or uninstall its package"),
        ("maglev = geo_scheduler_plugin:pick", "'maglev' is the name of a built-in scheduler"),
    ],
)
def test_faults_of_entry_points(site: Path, entry: str, said: str) -> None:
    install(site, entry, FUNCTION)
    with pytest.raises(ConfigError) as caught:
        plugins.load_entry_points()
    assert said in str(caught.value)
