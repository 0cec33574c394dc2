"""`minitorch merge`: several trained models of one architecture become one, without training."""

import inspect
from pathlib import Path

import click

from minitorch.errors import ConfigError
from models import checkpoints
from models.merging import METHODS, WITHOUT_BASE, merge_folders

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(
    epilog="""
    \b
    Examples:
      minitorch merge runs/a runs/b --out runs/both
      minitorch merge runs/a runs/b --method slerp --t 0.3 --out runs/both
      minitorch merge runs/add runs/reverse --method ties --base runs/base --out runs/both
    """
)
@click.argument("models", nargs=-1, required=True, type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="Where to write the model.")
@click.option(
    "--method", default="linear", show_default=True, type=click.Choice(list(METHODS)), help="How."
)
@click.option(
    "--base",
    type=FOLDER,
    help=f"What the models were trained from; all but {' and '.join(WITHOUT_BASE)} need it.",
)
@click.option(
    "--weight",
    "weights",
    type=float,
    multiple=True,
    help="A model's share, once for each, in their order.  [default: 1]",
)
@click.option("--t", type=float, help="Where on the arc from the first to the second.  [0.5]")
@click.option("--density", type=float, help="Share of what was learnt that is kept.  [0.2 or 0.5]")
@click.option("--scale", type=float, help="Of the sum of what was learnt.  [1]")
@click.option("--seed", type=click.IntRange(min=0), help="Of what dare drops.  [0]")
def merge(
    models: tuple[Path, ...],
    out: Path,
    method: str,
    base: Path | None,
    weights: tuple[float, ...],
    **settings: float | None,
) -> None:
    """Make one model of several: MODELS are folders, or runs, of one architecture and size.

    Linear averages; slerp goes along the arc between two; task_arithmetic adds what each has learnt
    to their base; ties lets them vote where they disagree; dare drops most of it at random first.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if weights:
        given["weights"] = list(weights)  # type: ignore[assignment]
    known = inspect.signature(METHODS[method]).parameters
    for name in given:
        if name not in known:
            takes = ", ".join(f"--{key.removesuffix('s')}" for key in known if key in OPTIONS)
            raise ConfigError(
                f"--{name.removesuffix('s')}: {method} has no such setting; it takes {takes}"
            )
    folders = [checkpoints.model_folder(folder) for folder in models]
    start = None if base is None else checkpoints.model_folder(base)
    merge_folders(method, folders, out, start, **given)
    click.echo(f"{method} of {', '.join(map(str, folders))}: {out}")


OPTIONS = ("weights", "t", "density", "scale", "seed")
