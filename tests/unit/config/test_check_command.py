"""`featherlb check [FILE]`."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from featherlb.cli.check import check
from featherlb.model.errors import ConfigError
from tests.unit.config.test_mutations import VALID


def test_a_right_file_is_shown_as_it_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(
        "services:\n- name: web\n  vip: [10.0.0.10:80, 10.0.0.10:8000-8010]\n  scheduler: wlc\n"
        "  nat: full\n  source_addresses: [10.0.0.2]\n"
        "  backends: [10.0.1.2:8080, {address: 'b:80', weight: 3}]\n- vip: 10.0.0.11:80\n"
    )
    result = CliRunner().invoke(check, [str(path)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "service web\n"
        "  vip             10.0.0.10:80/tcp\n"
        "  vip             10.0.0.10:8000-8010/tcp\n"
        "  scheduler       weighted-least-connections\n"
        "  nat             full\n"
        "  source          10.0.0.2\n"
        "  datapath        nfqueue\n"
        "  health          not checked\n"
        "  backend         10.0.1.2:8080  weight 1\n"
        "  backend         b:80           weight 3\n"
        "service 10.0.0.11:80/tcp\n"
        "  vip             10.0.0.11:80/tcp\n"
        "  scheduler       round-robin\n"
        "  nat             dnat\n"
        "  datapath        nfqueue\n"
        "  health          not checked\n"
        "  backend         none: connections are refused\n"
        f"{path}: ok\n"
    )


def test_all_that_is_set_is_shown_and_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(VALID)
    result = CliRunner().invoke(check, [str(path)])
    assert result.exit_code == 0
    assert result.stderr == ""
    for shown in (
        "  datapath        auto\n",
        "  health          http, interval 2 s, timeout 1 s, rise 2, fall 3, initial down, port"
        " 8081, method GET, path /health, host example.org, status 200, 301-302, body fine\n",
        "  health          udp, interval 2 s, timeout 1 s, rise 2, fall 3, initial up, send ping,"
        " expect pong\n",
        "  persistence     timeout 300 s, prefix 24\n",
        "  mss             1400\n",
        "  on_backend_down reset\n",
        "  one_packet      true\n",
        "workers           2\n",
        "api               listen 127.0.0.1:9000, hosts none\n",
        "hash_key          set\n",
    ):
        assert shown in result.stdout
    assert "a-token-of-the-test" not in result.stdout
    assert "secret" not in result.stdout


def test_faults_of_schedulers_have_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    (tmp_path / "wrong.py").write_text("\ndef pick(flow, backends)\n    return 1\n")
    (tmp_path / "right.py").write_text("def pick(flow, backends): return backends[0]\n")
    path.write_text(
        "services:\n- vip: 10.0.0.10:80\n  scheduler: ./wrong.py:pick\n"
        "- vip: 10.0.0.10:81\n  scheduler: ./right.py:pick\n"
        "- vip: 10.0.0.10:82\n  scheduler: ./none.py:pick\n"
        "- vip: 10.0.0.10:83\n  scheduler: ./wrong.py:pick\n"
    )
    result = CliRunner().invoke(check, [str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"{path}:3: services[0].scheduler: {tmp_path}/wrong.py:2: the scheduler does not load:"
        " SyntaxError: expected ':'\n"
        f"{path}:7: services[2].scheduler: {tmp_path}/none.py can't be read (no such file or"
        " directory): fix the path\n"
        f"{path}:9: services[3].scheduler: {tmp_path}/wrong.py:2: the scheduler does not load:"
        " SyntaxError: expected ':'\n"
    )


def test_a_file_without_a_name_is_no_scheduler(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text("services:\n- vip: 10.0.0.10:80\n  scheduler: ./mine.py\n")
    result = CliRunner().invoke(check, [str(path)])
    assert result.stderr == (
        f"{path}:3: services[0].scheduler: './mine.py' names no class or function of the file"
        " (expected FILE.py:NAME)\n"
    )


def test_roles_limits_and_warnings(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(
        "services:\n- vip: '[2001:db8::1]:80'\n  backends:\n  - '[::1]:80'\n"
        "  - {address: '[2001:db8::2]:80', role: backup, max_connections: 9, labels: {zone: a}}\n"
    )
    result = CliRunner().invoke(check, [str(path)])
    assert result.exit_code == 0
    assert result.stderr == (
        f"{path}:4: services[0].backends[0]: warning: only clients on this host can reach"
        " [::1]:80 (make it listen on another address)\n"
    )
    assert "weight 1\n" in result.stdout
    assert "weight 1, backup, at most 9 connections, zone=a\n" in result.stdout


def test_every_fault_goes_to_stderr(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text("services:\n- vip: 10.0.0.10\nqueue: x\n")
    result = CliRunner().invoke(check, [str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"{path}:2: services[0].vip: '10.0.0.10' is not HOST:PORT\n"
        f"{path}:3: queue: 'x' is text (expected an integer from 0 to 65535)\n"
    )


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(check, [str(tmp_path / "lb.yaml")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"{tmp_path}/lb.yaml: cannot read the configuration: no such file or directory\n"
    )


def test_without_a_name_the_file_that_up_would_read_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATHERLB_CONFIG", raising=False)
    for module in ("featherlb.config", "featherlb.cli.check"):
        monkeypatch.setattr(f"{module}.SEARCH_PATH", (Path("a.yaml"), Path("b.yaml")))
    result = CliRunner().invoke(check, [])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "no configuration: name a FILE, or create a.yaml or b.yaml"
    for name in ("c", "b", "a"):
        (tmp_path / f"{name}.yaml").write_text("services: []\n")
    assert CliRunner().invoke(check, []).stdout == "a.yaml: ok\n"
    (tmp_path / "a.yaml").unlink()
    assert CliRunner().invoke(check, []).stdout == "b.yaml: ok\n"
    result = CliRunner(env={"FEATHERLB_CONFIG": "c.yaml"}).invoke(check, [])
    assert result.stdout == "c.yaml: ok\n"


def test_a_cluster_is_shown_as_the_file_has_it(tmp_path: Path) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text(
        "services: []\ncluster: {node: a, listen: '10.9.0.1:7946', peers: ['10.9.0.2:7946'],"
        " source_addresses: {a: [10.0.1.1, 10.0.1.2], b: 10.0.1.3}}\n"
    )
    result = CliRunner().invoke(check, [str(file)])
    assert result.exit_code == 0
    assert "source addresses a: 10.0.1.1, 10.0.1.2; b: 10.0.1.3" in result.stdout
