"""The options by which tokens are drawn, of all commands that draw some."""

from collections.abc import Callable
from typing import Any

import click

OPTIONS = (
    click.option("--temperature", default=0.8, show_default=True, help="0 is greedy."),
    click.option("--top-k", default=0, show_default=True, help="Keep the k likeliest; 0 is all."),
    click.option(
        "--top-p", default=1.0, show_default=True, help="Keep the likeliest up to this mass."
    ),
    click.option(
        "--min-p", default=0.0, show_default=True, help="Keep those this share of the likeliest."
    ),
    click.option(
        "--repetition-penalty", default=1.0, show_default=True, help="Of what was seen; 1 is none."
    ),
    click.option("--presence-penalty", default=0.0, show_default=True),
    click.option("--frequency-penalty", default=0.0, show_default=True),
)
"""By the names of `models.sampling.Sampler`'s fields."""


def drawing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options, which it takes as **settings of a Sampler."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
