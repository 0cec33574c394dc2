"""`minitorch llama2`: Llama 2's pipeline on a toy, from demonstrations to an assistant."""

from models.commands.pipelines import pipeline_command
from models.experiments.llama2 import EXPERIMENT
from models.pipelines.llama2 import run


@pipeline_command(
    EXPERIMENT,
    run,
    examples=(
        "minitorch llama2",
        "minitorch llama2 --quick --out /tmp/llama2",
        "minitorch llama2 --set rounds=1 --seed 1 --json",
        "minitorch llama2 --resume runs/llama2",
    ),
)
def llama2() -> None:
    """Run Llama 2's pipeline on requests that are helpful to answer, and some not safe.

    Fine-tuning on careless demonstrations; a reward model of what is helpful and one of what is
    safe, combined; rejection sampling in rounds; PPO; and ghost attention, which keeps to an
    instruction over many questions. With controls that lack one of these. Every stage has a
    folder; Ctrl-C saves and stops, and --resume goes on where it was.
    """
