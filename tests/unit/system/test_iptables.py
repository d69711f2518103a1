"""What iptables-restore says when it refuses, in one line: outputs of version 1.8.9."""

import pytest

from featherlb.system.iptables import _reason

MANUAL = "Try `iptables-restore -h' or 'iptables-restore --help' for more information."


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            f"iptables-restore v1.8.9 (legacy): Set web doesn't exist.\n\n"
            f"Error occurred at line: 2\n{MANUAL}\n",
            "Set web doesn't exist.",
        ),
        (
            "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'raw'\n"
            f"Error occurred at line: 1\n{MANUAL}\n",
            "unable to initialize table 'raw'",
        ),
        (
            "Warning: Extension CT revision 0 not supported, missing kernel module?\n"
            "ip6tables-restore v1.8.9 (nf_tables): \n"
            "line 2: RULE_APPEND failed (Invalid argument): rule in chain PREROUTING\n",
            "Warning: Extension CT revision 0 not supported, missing kernel module?; line 2:"
            " RULE_APPEND failed (Invalid argument): rule in chain PREROUTING",
        ),
        (
            "# Warning: iptables-legacy tables present, use iptables-legacy to see them\n"
            "iptables-restore: line 2 failed: No chain/target/match by that name.\n",
            "line 2 failed: No chain/target/match by that name.",
        ),
        ("iptables-restore: line 3 failed\n", "line 3 failed"),
        ("", "no reason given"),
    ],
)
def test_the_reason_of_a_refusal(said: str, reason: str) -> None:
    assert _reason(said) == reason
