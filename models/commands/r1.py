"""`minitorch r1`: DeepSeek-R1's pipeline on a toy, from a base model to a distilled one."""

from models.commands.pipelines import pipeline_command
from models.experiments.r1 import EXPERIMENT
from models.pipelines.r1 import run


@pipeline_command(
    EXPERIMENT,
    run,
    examples=(
        "minitorch r1",
        "minitorch r1 --quick --out /tmp/r1",
        "minitorch r1 --set language_weight=0.2 --seed 1 --json",
        "minitorch r1 --resume runs/r1",
    ),
)
def r1() -> None:
    """Run DeepSeek-R1's pipeline on sums that are thought of in two alphabets.

    A base model; R1-Zero by reinforcement alone; a cold start, and reinforcement that asks for one
    language; what that writes and is right, learnt by the base; reinforcement on all tasks; and a
    small model that learns from the result. With controls that lack one of these. Every stage has
    a folder; Ctrl-C saves and stops, and --resume goes on where it was.
    """
