"""`featherlb simulate CONFIG`."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from featherlb.cli.simulate import simulate
from featherlb.model.errors import ConfigError, HostError

FILE = """\
services:
  - name: web
    vip: 192.0.2.10:80
    scheduler: wrr
    backends: ['10.0.1.2:8080', {address: '10.0.1.3:8080', weight: 3}]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "lb.yaml"
    path.write_text(FILE)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(simulate, [*map(str, arguments), "--flows", "400"])


def test_tables_for_people(config: Path) -> None:
    result = run(config)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0].startswith("web: 192.0.2.10:80/tcp, 400 flows of ")
    assert "weighted-round-robin" in lines
    assert "10.0.1.2:8080 1 100 25.0 % 25.0 % +0.0 % ███████" in lines
    assert f"10.0.1.3:8080 3 300 75.0 % 75.0 % +0.0 % {'█' * 20}" in lines
    changes = [line for line in lines if " weighted-round-robin " in f" {line}"]
    assert [line.partition(" weighted")[0] for line in changes[:4]] == [
        "no change",
        "remove 10.0.1.2:8080",
        "add 10.0.1.4:8080 1",
        "weight 10.0.1.2:8080 2",
    ]
    assert lines[-1].startswith("weighted-round-robin ")
    assert not [line for line in result.stdout.splitlines() if len(line) > 80][1:]


def test_json_for_programs_with_schedulers_side_by_side(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def pick(flow, backends):\n    return backends[-1]\n")
    result = run(
        config, "--scheduler", "mh", "--scheduler", "./mine.py:pick", "--scheduler", "maglev",
        "--change", "remove 10.0.1.3:8080", "-o", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["load"] == {
        "clients": "10.0.0.0/16", "flows": 400, "rate": 1000.0, "duration": 10.0, "seed": 1,
        "latencies": {},
    }  # fmt: skip
    maglev, mine = answer["trials"]
    assert (maglev["scheduler"], mine["scheduler"]) == ("maglev", f"{tmp_path}/mine.py:pick")
    assert [one["flows"] for one in mine["shares"]] == [0, 400]
    assert [one["change"] for one in mine["moves"]] == ["no change", "remove 10.0.1.3:8080"]
    assert mine["moves"][1]["flows"] == 1.0
    assert mine["cost"] > 0


@pytest.mark.parametrize(("name", "start"), [("p.svg", b"<?xml"), ("p.png", b"\x89PNG")])
def test_a_picture(config: Path, tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    assert run(config, "--scheduler", "rr", "--scheduler", "sh", "--plot", path).exit_code == 0
    assert path.read_bytes().startswith(start)


def refusal(kind: type[ConfigError | HostError], *arguments: object) -> str:
    """What the command says; nothing was simulated."""
    result = run(*arguments)
    assert isinstance(result.exception, kind)
    assert result.stdout == ""
    return str(result.exception)


def test_what_is_missing_is_said_in_one_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "'10.0' is not a network" in refusal(ConfigError, config, "--clients", "10.0")
    assert "unknown scheduler 'rrr'" in refusal(ConfigError, config, "--scheduler", "rrr")
    assert "no service 'dns'" in refusal(ConfigError, config, "--service", "dns")
    assert "has to end in .svg or .png" in refusal(ConfigError, config, "--plot", "a.jpg")
    absent = tmp_path / "absent" / "a.svg"
    pytest.importorskip("matplotlib")
    assert "cannot write" in str(run(config, "--plot", absent).exception)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'featherlb[plot]'" in refusal(HostError, config, "--plot", "a.svg")


def test_a_file_with_several_services(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(
        f"{FILE}  - name: dns\n    vip: '[fd00::1]:53'\n    protocol: udp\n"
        "    backends: ['[fd00:1::1]:53']\n"
    )
    assert "choose a service with --service NAME (the file has: web, dns)" in refusal(
        ConfigError, path
    )
    result = run(path, "--service", "dns")
    assert result.exit_code == 0, result.output
    assert "in fd00::/112" in result.stdout
