"""The command line: `minitorch COMMAND`, one module to a command, imported when it is asked for.

What went wrong decides the exit code: 0 fine; 1 an error that the message explains (`error: …`, no
traceback); 2 a command line that cannot be understood; 130 interrupted by Ctrl-C.
"""

import difflib
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from minitorch.errors import MinitorchError

COMMANDS = {
    "train": (
        "models.commands.train:train",
        "Train a language model on a text, from nothing or from where a run stopped.",
    ),
    "sft": (
        "models.commands.sft:sft",
        "Fine-tune a model on conversations, or on a task.",
    ),
    "reward": (
        "models.commands.reward:reward",
        "Train a reward model on preferences, or on steps that are right or wrong.",
    ),
    "dpo": (
        "models.commands.dpo:dpo",
        "Train a model on preferences, without a reward model.",
    ),
    "ppo": (
        "models.commands.ppo:ppo",
        "Reinforcement with a critic, from a reward model or a program.",
    ),
    "grpo": (
        "models.commands.grpo:grpo",
        "Train a model by reinforcement: GRPO and its relatives, from rewards a program gives.",
    ),
    "best-of": (
        "models.commands.best_of:best_of_command",
        "Sample, judge, and keep the best, as rows to be fine-tuned on.",
    ),
    "distill": (
        "models.commands.distill:distill",
        "Train a small model to say what a large one says.",
    ),
    "r1": (
        "models.commands.r1:r1",
        "Run DeepSeek-R1's pipeline on a toy, from a base model to a distilled one.",
    ),
    "llama2": (
        "models.commands.llama2:llama2",
        "Run Llama 2's pipeline on a toy: two reward models, rejection sampling, PPO, ghosts.",
    ),
    "constitution": (
        "models.commands.constitution:constitution",
        "Run Constitutional AI on a toy: a model that mends and judges its own answers by rules.",
    ),
    "merge": ("models.commands.merge:merge", "Make one model of several, without training."),
    "chat": ("models.commands.chat:chat", "Talk to a model that has learnt to answer."),
    "sample": ("models.commands.sample:sample", "Continue a text with a trained model."),
    "tokenize": (
        "models.commands.tokenize:tokenize",
        "Train a tokenizer, or show how a text is split into tokens.",
    ),
    "gradcheck": (
        "models.commands.gradcheck:gradcheck",
        "Check the derivative of every operation against finite differences.",
    ),
    "bench": (
        "models.commands.bench:bench",
        "Time kernels and training steps beside other libraries and the machine's limits.",
    ),
    "simt": (
        "models.commands.simt:simt",
        "Run CUDA kernels on the CPU, and find their races, bounds errors and deadlocks.",
    ),
    "doctor": (
        "models.commands.doctor:doctor",
        "Say what this machine offers: compiler, kernels, GPU, versions, memory.",
    ),
}
"""Name → where its click command is, and its line in `minitorch --help`, which imports none."""


class Commands(click.Group):
    """A group that imports a command on use, suggests names, and turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        return getattr(import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}."
            raise click.UsageError(f"no such command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        extra["standalone_mode"] = False
        try:
            sys.exit(super().main(args, **extra) or 0)
        except click.UsageError as error:
            if error.ctx is not None:
                click.echo(error.ctx.get_usage(), err=True)
                click.echo(f"Try '{error.ctx.command_path} --help' for help.\n", err=True)
            click.echo(f"error: {error.format_message()}", err=True)
            sys.exit(2)
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            sys.exit(130)
        except (MinitorchError, click.ClickException) as error:
            click.echo(f"error: {error}", err=True)
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read the output, `head` say, has left
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            else:
                click.echo(f"error: {error}", err=True)
        sys.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="minitorch-engine", prog_name="minitorch")
def main() -> None:
    """Train, sample and check small language models on an engine written from scratch.

    \b
    minitorch train            a small GPT on a text that is already here
    minitorch sample           what it has learnt
    minitorch COMMAND --help   all options, with examples
    """


if __name__ == "__main__":
    main()
