"""`featherlb cluster`: this node and its peers, and the keys by which nodes know one another."""

from pathlib import Path

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import (
    instance_option,
    new_table,
    output_option,
    print_answer,
    print_table,
    shows,
)
from featherlb.cli.help import Commands, examples
from featherlb.cluster import keys as key_files
from featherlb.config import values
from featherlb.config.types import DEFAULT_KEYS
from featherlb.model.errors import ConfigError, HostError


@click.group(
    cls=Commands, epilog=examples("featherlb cluster keys lb1 lb2 lb3", "featherlb cluster status")
)
def cluster() -> None:
    """Show and leave a cluster of nodes, make its keys."""


@shows("/v1/cluster", schema.Cluster, "featherlb cluster status")
def status(answer: schema.Cluster) -> None:
    """Show this node and its peers."""
    table = new_table("peer", "address", "state", "flows", "ready", "serves")
    for peer in answer.peers:
        known = peer.state == "synchronised"
        table.add_row(
            peer.node,
            peer.address,
            f"{peer.state}: {peer.trouble}" if peer.trouble else str(peer.state),
            "known" if peer.copied else "not all known",
            ("yes" if peer.ready else "no") if known else "",
            ("the same" if peer.same else "something else") if known else "",
        )
    print_table(table)
    counts = answer.flows
    click.echo(
        f"node {answer.node} is "
        + ("ready" if answer.ready else f"not ready: {'; '.join(answer.obstacles)}")
    )
    click.echo(
        f"flows: {counts.get('entered', 0):,} copied here, {counts.get('taken_over', 0):,} taken"
        f" over, {counts.get('yielded', 0):,} given up"
    )
    for reason, count in answer.refused.items():
        click.echo(f"refused {count} times: {reason}")


cluster.add_command(status)


@cluster.command(epilog=examples("featherlb cluster leave"))
@instance_option
@output_option
def leave(instance: int | None, output: str) -> None:
    """Be no longer ready, so that routers send traffic to other nodes.

    What announces the routes must ask `GET /ready`. Packets that still arrive are balanced. When
    none do, featherlb can be stopped.
    """
    _set(instance, output, leaving=True)


@cluster.command(epilog=examples("featherlb cluster join"))
@instance_option
@output_option
def join(instance: int | None, output: str) -> None:
    """Be ready again after `leave`."""
    _set(instance, output, leaving=False)


def _set(instance: int | None, output: str, *, leaving: bool) -> None:
    request = schema.ClusterRequest(leaving=leaving)
    answer = connect(instance).post("/v1/cluster", request, schema.Cluster)
    state = "ready" if answer.ready else f"not ready: {'; '.join(answer.obstacles)}"
    print_answer(answer, output, f"node {answer.node} is {state}")


@cluster.command(epilog=examples("featherlb cluster keys lb1 lb2 lb3 --directory keys"))
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_KEYS,
    show_default=True,
    help="Where the keys are.",
)
def keys(nodes: tuple[str, ...], directory: Path) -> None:
    """Make a key and a certificate for each NODE, and the authority that signs them.

    Keys that exist stay. Each node needs ca.pem, NODE.pem and NODE.key, and nobody else may read
    the last one; ca.key is needed only to add nodes, and belongs in a safe place.
    """
    for node in nodes:
        try:
            values.host_name(node)
        except ValueError as error:
            raise ConfigError([f"a node's name: {error}"]) from None
    try:
        made = key_files.make(directory, nodes)
    except OSError as error:
        raise HostError(f"cannot write keys to {directory}: {error.strerror}") from None
    for path in made:
        click.echo(path)
    if not made:
        click.echo(f"{directory} has all of them already")
