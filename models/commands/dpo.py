"""`minitorch dpo`: preferences without a reward model."""

from models.commands.answers_page import write_answers
from models.commands.running import Job, duration, training_command
from models.recipes.dpo import DPO, DPOConfig


@training_command(
    DPOConfig,
    shortcuts={
        "model": "Folder of the model to begin with.",
        "data": "JSONL file of preferences.",
        "loss": "What pairs are judged by.",
        "reference": "Another model to stay close to than the one to begin with.",
    },
    examples=(
        "minitorch dpo --model runs/sft --data preferences.jsonl",
        "minitorch dpo --model runs/sft --data preferences.jsonl --loss simpo --set beta=2",
        "minitorch dpo --resume runs/dpo",
    ),
)
def dpo(job: Job) -> None:
    """Train a model on preferences: answers like the chosen ones become likelier.

    A row of the file is {"prompt": ..., "chosen": ..., "rejected": ...}. `chosen` and `rejected`
    are the log-probabilities of the two; `right` is the share of pairs in which the chosen one has
    gained more on the reference. OUT/rollouts.html shows pairs, token by token.
    """
    recipe = DPO(job.config)
    about = [
        f"and a vocabulary of {recipe.tokenizer.vocab_size:,} tokens, from {job.config.model}",
        f"{job.config.data}: {len(recipe.training):,} pairs to train on, "
        f"{len(recipe.validation):,} to validate",
    ]
    with job.owned(recipe, about):
        result = job.fit(recipe, title=f"{job.config.loss} on {job.config.data}", unit="nats")
        job.console.print(
            f"\n{recipe.step} steps in {duration(recipe.elapsed)}: "
            f"[bold]{100 * result['val_accuracy']:.1f} %[/] of the validation pairs are on the "
            "right side"
        )
        pairs = [pair.answers[:2] for pair in recipe.validation]
        write_answers(job.out, recipe.model, recipe.tokenizer, recipe.step, pairs)
        job.report(result, "sample --checkpoint")
