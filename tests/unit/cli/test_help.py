"""What every command's help has, and what a mistyped word gets for an answer."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from featherlb.cli import cli
from featherlb.cli.help import Commands


def all_commands(
    command: click.Command = cli, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from all_commands(inner, (*words, name))


COMMANDS = dict(all_commands())
EACH = pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "featherlb")


def help_of(words: tuple[str, ...]) -> str:
    result = CliRunner().invoke(cli, [*words, "--help"], prog_name="featherlb")
    assert result.exit_code == 0, result.output
    return result.output


@EACH
def test_help_ends_with_examples_that_are_right(words: tuple[str, ...]) -> None:
    _, found, lines = help_of(words).rpartition("Example")
    assert found
    examples = [line.strip() for line in lines.splitlines()[1:]]
    assert 1 <= len(examples) <= 2
    for example in examples:
        program, *arguments = shlex.split(example.partition(" > ")[0].replace("COMMAND", "status"))
        assert program == "featherlb"
        assert tuple(arguments[: len(words)]) == words
        context = cli.make_context("featherlb", arguments, resilient_parsing=False)
        command: click.Command = cli
        while isinstance(command, click.Group):
            name, inner, rest = command.resolve_command(
                context, context._protected_args + context.args
            )
            assert inner is not None
            if "--help" in rest:
                break
            # Parses all that the command would get, and runs nothing.
            context = inner.make_context(name, rest, parent=context)
            command = inner


@EACH
def test_help_has_words_and_no_types(words: tuple[str, ...]) -> None:
    for line in help_of(words).splitlines():
        assert not re.search(r"\b(INTEGER|FLOAT|TEXT|RANGE|PATH|DURATION|CHOICE)\b", line), line


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("stauts", "there is no command 'stauts' (did you mean 'stats' or 'status'?)"),
        ("Check x", "there is no command 'Check' (did you mean 'check'?)"),
        ("loglevel debug", "did you mean 'log-level'?"),
        ("backend drian web x", "there is no command 'drian' (did you mean 'drain'?)"),
        ("xyzzy", "there is no command 'xyzzy' (expected up, down, check, "),
        ("up --nat fll", "'fll' is unknown, did you mean 'full'? (expected dnat or full)"),
        ("up --datapath nfque", "'nfque' is unknown, did you mean 'nfqueue'? (expected nfqueue or"),
        ("up --datapath x", "'x' is unknown (expected nfqueue or raw or offload or ebpf or auto)"),
        ("log-level verbose", "'verbose' is unknown (expected debug or info or warning)"),
        ("flows --stat x", "--state"),
        ("log-level verbose", "Invalid value for 'LEVEL'"),
        ("backend weight web x high", "'high' is not a valid whole number"),
        ("up --workers two", "'two' is not a valid whole number"),
        ("top --interval fast", "'fast' is not a valid number"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_right_one(typed: str, said: str) -> None:
    result = CliRunner().invoke(cli, typed.split(), prog_name="featherlb")
    assert result.exit_code == 2
    assert said in result.output


def test_every_group_answers_so() -> None:
    groups = [command for command in COMMANDS.values() if isinstance(command, click.Group)]
    assert len(groups) > 1
    assert all(isinstance(group, Commands) for group in groups)
