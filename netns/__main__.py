"""`python -m netns up|down|status`: a lab to play in."""

import os

import click

from featherlb.lab.namespaces import VIP, Lab, labs, nodes_of, remove


@click.group()
def main() -> None:
    """Network namespaces with clients, a balancer's host and backends. Needs root."""
    if os.geteuid() != 0:
        raise click.ClickException("only root makes network namespaces: sudo make lab-up")


@main.command()
@click.argument("lab_id", default="play", metavar="[ID]")
@click.option("--clients", default=1, show_default=True, type=click.IntRange(1, 100), metavar="N")
@click.option("--backends", default=3, show_default=True, type=click.IntRange(1, 100), metavar="N")
@click.option(
    "--arms",
    default=2,
    show_default=True,
    type=click.IntRange(1, 2),
    metavar="N",
    help="Networks of the balancer: with 1, clients and backends share one.",
)
def up(lab_id: str, clients: int, backends: int, arms: int) -> None:
    """Build a lab and leave it up."""
    lab = Lab(clients, backends, arms, lab_id)
    try:
        lab.up()
    except FileExistsError:
        raise click.ClickException(
            f"lab {lab_id} is up already; take it down with: python -m netns down {lab_id}"
        ) from None
    for node in lab.nodes:
        for interface, addresses in node.addresses.items():
            click.echo(f"{node.namespace:24} {interface:6} {'  '.join(addresses)}")
    backend = lab.backends[0]
    click.echo(f"\n{VIP} is free for a VIP. Try, each in its own terminal:")
    for namespace, command in (
        (backend.namespace, "python3 -m http.server 8080"),
        (
            lab.balancer.namespace,
            f".venv/bin/featherlb up --vip {VIP}:80 --backend {backend.address}:8080",
        ),
        (lab.client.namespace, f"curl http://{VIP}/"),
    ):
        click.echo(f"  ip netns exec {namespace} {command}")


@main.command()
@click.argument("lab_id", default="play", metavar="[ID]")
@click.option(
    "--all", "everything", is_flag=True, help="Take down every lab that no running process uses."
)
def down(lab_id: str, everything: bool) -> None:
    """Take a lab down."""
    chosen = [name for name, held in labs().items() if not held] if everything else [lab_id]
    for name in chosen:
        remove(name)
        click.echo(f"lab {name} is down")


@main.command()
def status() -> None:
    """List the labs of this machine and their namespaces."""
    for name, held in labs().items():
        click.echo(f"{name}  {'in use' if held else 'up'}")
        for node in nodes_of(name):
            click.echo(f"  {node.namespace:24} {len(node.pids())} processes")


if __name__ == "__main__":
    main(prog_name="python -m netns")
