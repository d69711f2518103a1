"""Which tests can run here: those marked `kernel` need root, namespaces and NFQUEUE."""

import functools
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from featherlb import COMPILED

PROGRAMS = ("ip", "unshare", "iptables", "ip6tables", "iptables-legacy", "ss", "nginx")


# A shell that starts the tests in the background has SIGINT ignored, and every program that a test
# starts would inherit that; some tests interrupt theirs as a terminal would.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hundreds of tests start featherlb: Python should read its sources once, whatever is set here.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Each import of aiohttp, so each start of featherlb, reads the certificates of every authority that
# the machine trusts. No test asks a server of the internet who it is.
os.environ["SSL_CERT_FILE"] = os.devnull

# The key of the hash schedulers is kept here, and not on the machine, by whatever a test starts.
# It is always the same one, and so is what they pick.
_state = tempfile.TemporaryDirectory(prefix="featherlb-tests-")
(Path(_state.name) / "hash-key").write_text("feed" * 8)
(Path(_state.name) / "hash-key").chmod(0o600)
os.environ["STATE_DIRECTORY"] = _state.name

# How long an example takes says more of the machine than of the code.
settings.register_profile("featherlb", deadline=None)
settings.load_profile("featherlb")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-of-each",
        action="store_true",
        help="run one case of each kernel test that packets pass, the drivers and other parameters"
        " taking turns (docs/testing.md)",
    )
    parser.addoption(
        "--write-goldens",
        action="store_true",
        help="rewrite the files that plans are compared with (docs/testing.md)",
    )


def pytest_report_header() -> str:
    return f"packet path: {'compiled' if COMPILED else 'interpreted'}"


@functools.cache
def kernel_obstacle() -> str | None:
    """Why kernel tests can't run here, with the way out; None if they can."""
    if os.geteuid() != 0:
        return "kernel tests need root: sudo make test"
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"kernel tests need {', '.join(missing)}: sudo make setup"
    rule = "iptables -t raw -A PREROUTING -j NFQUEUE --queue-num 0"
    trial = subprocess.run(["unshare", "--net", *rule.split()], capture_output=True, text=True)
    if trial.returncode:
        return f"kernel tests need network namespaces and NFQUEUE: {trial.stderr.strip()}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A file of kernel tests can take a minute. Were it the last one, other processes would wait.
    items.sort(key=lambda item: item.get_closest_marker("kernel") is None)
    for item in items:
        if item.get_closest_marker("kernel") and (obstacle := kernel_obstacle()):
            item.add_marker(pytest.mark.skip(reason=obstacle))
