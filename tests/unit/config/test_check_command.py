"""`featherlb check FILE`."""

from pathlib import Path

from click.testing import CliRunner

from featherlb.cli.check import check


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
        "  vip        10.0.0.10:80/tcp\n"
        "  vip        10.0.0.10:8000-8010/tcp\n"
        "  scheduler  weighted-least-connections\n"
        "  nat        full\n"
        "  source     10.0.0.2\n"
        "  backend    10.0.1.2:8080  weight 1\n"
        "  backend    b:80           weight 3\n"
        "service 10.0.0.11:80/tcp\n"
        "  vip        10.0.0.11:80/tcp\n"
        "  scheduler  round-robin\n"
        "  nat        dnat\n"
        "  backend    none: connections are refused\n"
        f"{path}: ok\n"
    )


def test_roles_limits_and_warnings(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(
        "services:\n- vip: '[2001:db8::1]:80'\n  backends:\n  - '[::1]:80'\n"
        "  - {address: '[2001:db8::2]:80', role: backup, max_connections: 9}\n"
    )
    result = CliRunner().invoke(check, [str(path)])
    assert result.exit_code == 0
    assert result.stderr == (
        f"{path}:4: services[0].backends[0]: warning: only clients on this host can reach"
        " [::1]:80 (make it listen on another address)\n"
    )
    assert "weight 1\n" in result.stdout
    assert "weight 1, backup, at most 9 connections\n" in result.stdout


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
