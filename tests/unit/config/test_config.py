"""Files, and the promise that no text makes `parse` raise anything but ConfigError."""

import json
import re
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featherlb import config
from featherlb.config import Config, resolve
from featherlb.config.file import load, parse
from featherlb.config.writer import write
from featherlb.control.prepare import distrust
from featherlb.model import NetworkSet
from featherlb.model.errors import ConfigError

WORDS = re.findall(
    r"\S+",
    """
    services routes name vip protocol scheduler nat source_addresses backends address weight
    queue workers fail_open assign restore driver hash_key max_flows timeouts half_open fin
    host port strategy
    endpoints 10.0.0.1:80 10.0.0.2 [::1]:80 '[::1]:80' 0.0.0.0:1-9 web:80 rr full dnat tcp
    roundrobin 1 -1 010 1.5 10:30 30s true null ~ << *a &a ! !!int !!set | > --- ... %YAML ? @
    """,
)
PUNCTUATION = ["\n", "\n- ", "\n  ", "\n  - ", "\n    ", ": ", ", ", "[", "]", "{", "}", '"', " "]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(WORDS),
    st.text(max_size=5),
)
keys = st.sampled_from(WORDS) | st.text(max_size=3)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=30,
)


def faults_of(text: str) -> tuple[str, ...]:
    try:
        parse(text, "f")
    except ConfigError as error:
        return error.faults
    return ()


def check_promise(text: str) -> None:
    faults = faults_of(text)
    assert len(set(faults)) == len(faults)
    for fault in faults:
        assert fault.isprintable()
        assert "pydantic" not in fault
        assert "Input should be" not in fault
    lines = [int(fault.split(":")[1]) for fault in faults]
    assert lines == sorted(lines)


@given(st.text())
@example("[" * 2000)
@example('a: "\\UFFFFFFFF"')
@example('services: [{vip: "\\uD800"}]')
@example("%YAML " + "9" * 5000 + ".1\n---\na")
@example("? [a]\n: b")
@example("services: &a [*a]")
def test_no_text_raises_anything_but_config_error(text: str) -> None:
    check_promise(text)


@given(st.lists(st.sampled_from(WORDS + PUNCTUATION), max_size=40))
def test_nor_does_any_mixture_of_the_words_of_the_format(words: list[str]) -> None:
    check_promise("".join(words))


@given(documents)
def test_nor_does_any_structure(document: object) -> None:
    # A Python literal of these types is YAML in flow style, but for None and the booleans.
    text = repr(document).replace("None", "null").replace("True", "true").replace("False", "false")
    check_promise(text)


@given(st.fixed_dictionaries({"services": st.lists(st.dictionaries(keys, documents), max_size=3)}))
def test_nor_does_anything_that_resembles_services(document: object) -> None:
    check_promise(repr(document).replace("None", "null"))


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "lb.yaml")
    assert list(raised.value.faults) == [
        f"{tmp_path}/lb.yaml: cannot read the configuration: no such file or directory"
    ]
    with pytest.raises(ConfigError) as raised:
        load(tmp_path)
    assert list(raised.value.faults) == [
        f"{tmp_path}: cannot read the configuration: is a directory"
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["./check.sh", "../data", "./data", "data"], "{0}/lb/check.sh {0}/data {0}/lb/data data"),
        (["checks/web", "-f", "checks/x"], "{0}/lb/checks/web -f checks/x"),
        (["/bin/check"], "/bin/check"),
        (["python3", "./web.py"], "python3 {0}/lb/web.py"),
    ],
)
def test_paths_start_at_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[str], read: str
) -> None:
    (tmp_path / "lb").mkdir()
    health = {"type": "script", "command": written}
    service = {"vip": "10.0.0.1:80", "scheduler": "mine.py:pick", "health": health}
    (tmp_path / "lb" / "lb.yaml").write_text(json.dumps({"services": [service]}))
    monkeypatch.chdir(tmp_path)
    (found,) = load(Path("lb/lb.yaml")).services
    assert found.scheduler == f"{tmp_path}/lb/mine.py:pick"
    assert found.health is not None
    assert list(found.health.command) == read.format(tmp_path).split()


def test_a_file_that_is_not_text_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_bytes(b"services: []\n# caf\xe9\n")
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert list(raised.value.faults) == [f"{path}:2: this is not UTF-8 text"]


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_bytes(b"\xef\xbb\xbfservices: []\r\n")
    assert load(path) == config.Config()


def test_the_nearest_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc = tmp_path / "etc.yaml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "SEARCH_PATH", (config.SEARCH_PATH[0], etc))
    assert config.find_config() is None
    etc.touch()
    assert config.find_config() == etc
    Path("featherlb.yaml").touch()
    assert config.find_config() == Path("featherlb.yaml")


def test_it_looks_where_the_manual_says() -> None:
    assert [str(path) for path in config.SEARCH_PATH] == [
        "featherlb.yaml",
        "/etc/featherlb/featherlb.yaml",
    ]


def test_lists_of_networks_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "partners.txt").write_text("# ours\n10.0.0.0/8 # inside\n\n2001:db8::/32\n")
    path = tmp_path / "lb.yaml"
    path.write_text(
        "services:\n- vip: 10.0.0.1:80\n  allow: [192.168.0.0/16, {file: partners.txt}]\n"
    )
    loaded = load(path)
    (service,) = resolve(loaded, lambda name: ())
    assert service.admission.allow == NetworkSet.of(
        map(ip_network, ("10.0.0.0/8", "192.168.0.0/16", "2001:db8::/32"))
    )
    # Written back, it names the file, and its path holds from everywhere.
    assert f"file: {tmp_path}/partners.txt" in write(loaded)
    (tmp_path / "partners.txt").write_text("10.0.0.0/9\n")
    assert load(path) != loaded


def test_faults_of_a_file_of_networks_have_its_lines(tmp_path: Path) -> None:
    (tmp_path / "deny.txt").write_text("10.0.0.0/8\nexample.org\n10.1.2.3/8\n")
    (tmp_path / "empty.txt").write_text("# nobody yet\n")
    path = tmp_path / "lb.yaml"
    path.write_text(
        "services:\n- vip: 10.0.0.1:80\n  allow: [{file: none.txt}]\n  deny: [{file: deny.txt}]\n"
    )
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert list(raised.value.faults) == [
        f"{tmp_path}/none.txt:1: cannot read the networks: No such file or directory",
        f"{tmp_path}/deny.txt:2: 'example.org' is not a network (expected one such as 10.0.0.0/8)",
        f"{tmp_path}/deny.txt:3: '10.1.2.3/8' has host bits set (expected 10.0.0.0/8)",
    ]
    path.write_text("services:\n- vip: 10.0.0.1:80\n  allow: {file: empty.txt}\n")
    with pytest.raises(ConfigError, match="'allow' has no IPv4 network, so no client could"):
        load(path)
    path.write_text("services:\n- vip: 10.0.0.1:80\n  deny: {file: empty.txt}\n")
    load(path)


def test_the_prefix_of_a_limit_fits_the_address_that_a_name_turns_out_to_have() -> None:
    text = "services:\n- {vip: 'NAME:80', max_new: {rate: 5/m, prefix: 96}, max_flows: 9}\n"
    literal = parse(text.replace("NAME", "10.0.0.1").replace("96", "32"), "f").services[0]
    named = replace(
        literal,
        vips=(replace(literal.vips[0], host="lb.example"),),
        max_new=(replace(literal.max_new[0], prefix=96),),
    )
    for address, prefixes in (("10.0.0.1", (32, 32)), ("2001:db8::1", (96, 64))):
        found = {"lb.example": [ip_address(address)]}
        (service,) = resolve(Config(services=(named,)), found.__getitem__)
        (fastest,), (most,) = service.admission.max_new, service.admission.max_flows
        assert (fastest.prefix, most.prefix) == prefixes
        assert (fastest.rate, fastest.burst) == (5 / 60, 5)


def test_a_list_that_others_may_write_is_warned_of(tmp_path: Path) -> None:
    listed = tmp_path / "bad.txt"
    listed.write_text("10.0.0.0/8\n")
    listed.chmod(0o666)
    path = tmp_path / "lb.yaml"
    path.write_text("services:\n- {name: web, vip: '10.0.0.1:80', deny: {file: bad.txt}}\n")
    (warning,) = distrust(load(path))
    assert warning.startswith(f"service 'web': {listed} says who may connect, and /")
