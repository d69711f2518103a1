"""What the commands' help and usage errors have in common: examples, and the words that were
probably meant."""

from collections.abc import Callable, Iterable
from importlib import import_module

import click


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n".join(
        ("\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines))
    )


Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def completion(what: str) -> Complete:
    """The shell's completion of an argument or option, by a function of `completion`."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        module = import_module("featherlb.cli.completion")
        found = getattr(module, what)(ctx)
        return [word for word in found if word.startswith(incomplete)]

    return complete


class Commands(click.Group):
    """A group that names the command that was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if not ctx.resilient_parsing and not word.startswith("-"):
            known = self.list_commands(ctx)
            if word not in known:
                close = " or ".join(f"'{one}'" for one in _closest(word, known))
                hint = f"did you mean {close}?" if close else f"expected {', '.join(known)}"
                ctx.fail(f"there is no command '{word}' ({hint})")
        return super().resolve_command(ctx, args)


class WholeNumber(click.IntRange):
    """An integer within limits; click calls any other value "not a valid integer range"."""

    name = "whole number"


class Number(click.FloatRange):
    """A number within limits."""

    name = "number"


class Word(click.Choice[str]):
    """One of a few words; a fault names the one that was probably meant."""

    def __init__(self, words: Iterable[str]) -> None:
        super().__init__([str(word) for word in words])

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        known = [str(choice) for choice in self.choices]
        if value not in known:
            close = " or ".join(f"'{one}'" for one in _closest(str(value), known))
            hint = f", did you mean {close}?" if close else ""
            self.fail(f"'{value}' is unknown{hint} (expected {' or '.join(known)})", param, ctx)
        return str(value)


def _closest(word: str, known: Iterable[str]) -> list[str]:
    # Only a mistake needs it.
    from difflib import get_close_matches

    return get_close_matches(word.lower(), list(known), n=2, cutoff=0.7)
