"""`minitorch gradcheck`: every derivative rule of the engine, checked here and now."""

import difflib
import json
import time
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from minitorch import backend, kernels
from minitorch.errors import ConfigError
from minitorch.gradcheck import Report, check_primitive
from minitorch.ops import registry
from minitorch.ops.definition import Primitive


@click.command(
    epilog="Examples: minitorch gradcheck; minitorch gradcheck --op softmax --op layer_norm "
    "--order 2"
)
@click.option(
    "--op", "names", multiple=True, metavar="NAME", help="Only this one; may be repeated."
)
@click.option(
    "--dtype",
    default="float64",
    show_default=True,
    type=click.Choice(["float64", "float32", "float16", "bfloat16"]),
    help="float64 is compared with finite differences; a smaller one also with float64.",
)
@click.option(
    "--device", default="cpu", show_default=True, type=click.Choice(["cpu"]), help="Where to run."
)
@click.option(
    "--order", default=2, show_default=True, type=click.IntRange(1, 2), help="Of the derivatives."
)
@click.option("--seed", default=0, show_default=True, help="Of the random directions.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def gradcheck(
    names: tuple[str, ...], dtype: str, device: str, order: int, seed: int, as_json: bool
) -> None:
    """Check the derivatives of the operations, forward and reverse, against finite differences.

    Exits with 1 if any is wrong.
    """
    console = Console(highlight=False)
    begun = time.perf_counter()
    rows = [
        _check(primitive, order, dtype, seed)
        for primitive in track(
            _chosen(names), "checking", console=console, transient=True, disable=as_json
        )
    ]
    seconds = time.perf_counter() - begun
    failed = [row for row in rows if not row["ok"]]
    if as_json:
        click.echo(json.dumps({"ok": not failed, "seconds": seconds, "operations": rows}, indent=2))
    else:
        console.print(_table(rows))
        for row in failed:
            for finding in row["findings"]:
                console.print(f"[red]{row['name']}[/]: {finding}", soft_wrap=True)
        checked = sum(row["samples"] for row in rows)
        hidden = sum(row["unresolved"] for row in rows)
        verdict = f"[red]{len(failed)} wrong[/]" if failed else "[green]all right[/]"
        console.print(
            f"{len(rows)} operation{'s' * (len(rows) != 1)}, {checked} samples on {device} in "
            f"{seconds:.1f} s: {verdict}"
        )
        if hidden:
            console.print(
                f"{hidden} of {sum(row['values'] for row in rows)} values are so small beside "
                "others that rounding errors could hide a wrong percent of them",
                soft_wrap=True,
            )
    if failed:
        raise SystemExit(1)


def _chosen(names: tuple[str, ...]) -> list[Primitive]:
    for name in names:
        if name not in registry:
            close = difflib.get_close_matches(name, registry, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "see `minitorch gradcheck`"
            raise ConfigError(f"gradcheck: no operation is named {name!r}; {hint}")
        if not registry[name].differentiable:
            raise ConfigError(
                f"gradcheck: {name} has no derivative: {registry[name].why}"  # type: ignore[attr-defined]
            )
    return [registry[name] for name in names] or [
        primitive for primitive in registry.values() if primitive.differentiable
    ]


def _check(primitive: Primitive, order: int, dtype: str, seed: int) -> dict[str, Any]:
    total = Report()
    samples = [sample for sample in primitive.samples() if not sample.singular]
    for sample in samples:
        total.merge(
            check_primitive(
                primitive, sample, order=order, dtype=backend.as_dtype(dtype), seed=seed
            )
        )
    return {
        "name": primitive.name,
        "structure": primitive.structure,
        "samples": len(samples),
        "values": total.comparisons,
        "worst_relative_error": total.worst,
        "unresolved": total.unresolved,
        "ok": total.ok,
        "kernels": list(kernels.available().get(primitive.name, ())),
        "findings": [str(finding) for finding in total.findings],
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("operation", "structure", "kernels"):
        table.add_column(title)
    for title in ("samples", "values", "worst error"):
        table.add_column(title, justify="right")
    table.add_column("")
    for row in rows:
        table.add_row(
            row["name"],
            row["structure"],
            ", ".join(row["kernels"]),
            str(row["samples"]),
            str(row["values"]),
            f"{row['worst_relative_error']:.1e}",
            "[green]right[/]" if row["ok"] else "[red]WRONG[/]",
        )
    return table
