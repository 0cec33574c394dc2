"""`python -m models.experiments`: list the experiments, or run one and judge its claims."""

import dataclasses
import shlex
import sys
from pathlib import Path

import click
from rich.console import Console

from minitorch.io import write_json
from models.experiments import NAMES, load
from models.experiments.experiment import record, save_picture, show


def _in_a_folder(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"expected a file in a folder that exists; got {path}")
    return path


@click.command(
    epilog="Example: python -m models.experiments context_extension --seed 1 --json result.json"
)
@click.argument("name", required=False, type=click.Choice(NAMES))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--quick", is_flag=True, help="Tiny sizes, only to see that it runs; no verdict.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_in_a_folder,
    help="Write the set-up, the table and the claims there.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_in_a_folder,
    help="Draw the result, as PNG.",
)
def main(
    name: str | None, seed: int, quick: bool, json_path: Path | None, picture: Path | None
) -> None:
    """Run one experiment, minutes of one core each; without NAME, list them.

    The exit code is 1 where a claim fails.
    """
    console = Console()
    if name is None:
        for known in NAMES:
            console.print(f"{known:24}{load(known).question}")
        return
    experiment = load(name)
    setup = experiment.quick if quick else experiment.setup
    sizes = ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(setup).items())
    console.print(f"{experiment.question}\n{sizes}, seed {seed}")
    rows = experiment.run(setup, seed, console)
    claims = [] if quick else experiment.claims(rows)
    show(console, rows, claims)
    if json_path is not None:
        command = shlex.join(["python", "-m", "models.experiments", *sys.argv[1:]])
        write_json(json_path, record(experiment, setup, seed, rows, claims, command))
    if picture is not None:
        save_picture(picture, experiment, rows)
    if not all(claim.holds for claim in claims):
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m models.experiments")
