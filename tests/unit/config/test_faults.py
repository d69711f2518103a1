"""Faults as lines, in order."""

import pytest

from featherlb.config.faults import Fault, Origin, refuse
from featherlb.model.errors import ConfigError

FILE = Origin("lb.yaml", 7, "services[0].vip")
OPTION = Origin("", 0, "--vip x")


def test_an_origin_reads_well_alone_and_in_a_sentence() -> None:
    assert (str(FILE), FILE.place) == ("lb.yaml:7: services[0].vip", "line 7")
    assert (str(OPTION), OPTION.place) == ("--vip x", "--vip x")
    assert str(Origin("lb.yaml", 1, "")) == "lb.yaml:1"


def test_faults_are_raised_together_by_line_and_once() -> None:
    faults = [Fault(FILE, "b"), Fault(FILE, "a"), Fault(OPTION, "c"), Fault(FILE, "b")]
    with pytest.raises(ConfigError) as raised:
        refuse(faults)
    assert raised.value.faults == (
        "--vip x: c",
        "lb.yaml:7: services[0].vip: b",
        "lb.yaml:7: services[0].vip: a",
    )


def test_no_fault_is_no_error() -> None:
    refuse([])
