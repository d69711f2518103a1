"""What people look at: `featherlb top`, and the page in a real browser."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.servers import HttpServer
from tests.netns.browser import open_page
from tests.netns.command import Featherlb, run
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.load import Load
from tests.netns.test_operate_flows import LISTEN, TOKEN
from tests.netns.test_operate_pools import ONE, TWO, configuration, operate

pytestmark = [ONE_DRIVER, pytest.mark.no_packets("what is shown of the API's answers")]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With HTTP servers on port 8080 of two backends."""
    with Lab(backends=2) as lab, HttpServer(lab.backends[0]), HttpServer(lab.backends[1]):
        yield lab


@pytest.fixture
def loaded(lab: Lab, featherlb: Up, tmp_path: Path) -> Iterator[Featherlb]:
    """An instance under load, with the API on TCP."""
    path = tmp_path / "lb.yaml"
    api = f"api: {{listen: '{LISTEN}', token: {TOKEN}}}\n"
    path.write_text(api + configuration(ONE, TWO))
    with featherlb(lab, "--config", str(path)) as running, Load(lab, kept=4, short=2):
        operate(lab, "backend", "drain", "web", TWO)
        yield running


def test_top_fits_80_columns(lab: Lab, loaded: Featherlb) -> None:
    done = run(lab.balancer, "top", "--count", "2", "--interval", "1")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    print(done.stdout)
    assert done.stdout.count("busiest clients") == 2
    assert done.stdout.endswith("\n")
    for word in (ONE, "drained", "busiest clients", "10.0.0.101", "run-time changes 1"):
        assert word in done.stdout


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium: apt install chromium")
def test_the_page_in_a_browser(lab: Lab, loaded: Featherlb, tmp_path: Path) -> None:
    async def visit() -> None:
        async with open_page(lab.balancer, f"http://{LISTEN}/", tmp_path) as page:
            await page.wait_for("document.getElementById('ask')?.hidden === false")
            await page.run("document.getElementById('token').value = 'wrong'")
            await page.run("document.querySelector('#ask button').click()")
            await page.wait_for("document.body.innerText.includes('Wrong token')")
            await page.run(f"document.getElementById('token').value = '{TOKEN}'")
            await page.run("document.querySelector('#ask button').click()")
            await page.wait_for("document.body.innerText.includes('10.0.0.101')")
            lines = "[...document.querySelectorAll('svg polyline')]"
            await page.wait_for(f"{lines}.length === 8")
            await page.wait_for(f"{lines}.every((line) => line.points.length > 4)")
            text = await page.run("document.body.innerText")
            for word in ("web", ONE, TWO, "drained", "Throughput", "run-time changes"):
                assert word in text
            assert await page.run("document.getElementById('error').textContent") == ""
            width = "document.documentElement.scrollWidth <= innerWidth"
            assert await page.run(width)
            await page.screenshot(tmp_path / "page.png")

    lab.balancer.call(asyncio.run, visit())
    assert (tmp_path / "page.png").stat().st_size > 10000
