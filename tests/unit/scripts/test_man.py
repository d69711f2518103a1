"""The manual page is the commands' own help, and groff reads it."""

import shutil
import subprocess

import click
import pytest

from featherlb.cli import cli
from scripts.man import PAGE, page


def test_it_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m scripts.man`"


def leaves(group: click.Group, context: click.Context) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            found += leaves(command, inner)
        else:
            found.append((inner.command_path, command))
    return found


COMMANDS = leaves(cli, click.Context(cli, info_name="featherlb"))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_every_command_and_option_says_what_it_is_for(path: str, command: click.Command) -> None:
    assert f"\n.SS {path}".replace("-", r"\-") in page()
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts[0]} has no help"
            assert parameter.opts[0].replace("-", r"\-") in page()


def test_groff_has_no_complaint() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        [groff, "-man", "-Tascii", "-ww", "-z", str(PAGE)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
