"""`minitorch constitution`: Constitutional AI on a toy, from a helpful model to one with rules."""

from models.commands.pipelines import pipeline_command
from models.experiments.constitution import EXPERIMENT
from models.pipelines.constitution import run


@pipeline_command(
    EXPERIMENT,
    run,
    examples=(
        "minitorch constitution",
        "minitorch constitution --quick --out /tmp/constitution",
        "minitorch constitution --set rounds=1 --seed 1 --json",
        "minitorch constitution --resume runs/constitution",
    ),
)
def constitution() -> None:
    """Run Constitutional AI on requests, with two rules for answers.

    A helpful model criticises and mends its own answers and is fine-tuned on what came of it; it
    says which of two answers breaks a rule less, people say which is more helpful, and PPO follows
    a preference model of both. With controls that lack one of these. Every stage has a folder;
    Ctrl-C saves and stops, and --resume goes on where it was.
    """
