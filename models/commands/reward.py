"""`minitorch reward`: a model that judges answers."""

from models.commands.running import Job, duration, training_command
from models.commands.scores_page import write_scores
from models.recipes.reward import Reward, RewardConfig


@training_command(
    RewardConfig,
    shortcuts={
        "model": "Folder of the model to begin with.",
        "data": "JSONL file of preferences, or of steps.",
        "kind": "What is judged.",
    },
    examples=(
        "minitorch reward --model runs/sft --data preferences.jsonl",
        "minitorch reward --model runs/sft --data steps.jsonl --kind process",
        "minitorch reward --model runs/reward --data newer.jsonl --set replay=preferences.jsonl",
        "minitorch reward --resume runs/reward",
    ),
)
def reward(job: Job) -> None:
    """Train a reward model: of two answers the preferred one gets the higher score.

    A row of the file is {"prompt": ..., "chosen": ..., "rejected": ...}, with a "margin" where
    people were more or less sure; of a process reward model {"prompt": ..., "steps": [...],
    "labels": [1, 0, ...]}. `right` is the share of pairs, or steps, that are judged right.
    OUT/rollouts.html shows validation answers and their scores, token by token.
    """
    recipe = Reward(job.config)
    what = "pairs" if job.config.kind == "outcome" else "answers in steps"
    about = [
        f"and a score for a head, from {job.config.model}",
        f"{job.config.data}: {len(recipe.training):,} {what} to train on, "
        f"{len(recipe.validation):,} to validate",
    ]
    with job.owned(recipe, about):
        result = job.fit(recipe, title=f"on {job.config.data}", unit="nats")
        job.console.print(
            f"\n{recipe.step} steps in {duration(recipe.elapsed)}: "
            f"[bold]{100 * result['val_accuracy']:.1f} %[/] of the validation {what} judged right"
        )
        write_scores(job.out, recipe.model, recipe.tokenizer, recipe.step, recipe.validation)
        job.report(result)
