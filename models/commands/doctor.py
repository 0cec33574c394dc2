"""`minitorch doctor`: what this machine offers, as a table or as JSON."""

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from models import machine


@click.command(
    epilog="Example: minitorch doctor --json | python -c 'import json, sys; "
    'print(json.load(sys.stdin)["kernels"])\''
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def doctor(as_json: bool) -> None:
    """Say what this machine offers: compiler, instruction sets, kernels, CUDA, versions, memory.

    A question without an answer is a dash in the table and null in the JSON; the command itself
    never fails.
    """
    report = machine.report()
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for section, answers in report.items():
        for i, (question, answer) in enumerate(answers.items()):
            table.add_row("" if i else section, question, _text(section, answer))
        table.add_section()
    Console(highlight=False).print(table)


def _text(section: str, answer: Any) -> str:
    match answer:
        case None | []:
            return "-"
        case bool():
            return "yes" if answer else "no"
        case int() if section == "memory":
            return f"{answer / 2**30:.2f} GiB"
        case list():
            return ", ".join(answer)
        case _:
            return str(answer)
