"""`minitorch sft`: a base model learns to answer."""

from minitorch.io import atomic_write
from models.commands.answers_page import write_answers
from models.commands.running import Job, duration, training_command
from models.recipes.sft import SFT, SFTConfig, answers

SHOWN = 5  # answers


@training_command(
    SFTConfig,
    shortcuts={
        "model": "Folder of the base model.",
        "data": "JSONL file of conversations, or the name of a task.",
        "template": "How conversations are written.",
    },
    examples=(
        "minitorch sft --model runs/nano --data strings",
        "minitorch sft --model runs/nano --data chats.jsonl --set packing=true",
        "minitorch sft --model runs/nano --set text=embedded --set replay=0.1",
        "minitorch sft --resume runs/sft",
    ),
)
def sft(job: Job) -> None:
    """Fine-tune a model on conversations: it learns the assistant's words, and when to stop.

    A row of the file is {"messages": [{"role": "user", "content": ...}, ...]} or
    {"prompt": ..., "completion": ...}. `exact` is the share of validation questions whose answer,
    written without drawing, is the expected one. OUT/rollouts.html shows expected answers, and what
    the model gives to each of their tokens. Ctrl-C saves and stops; --resume goes on.
    """
    recipe = SFT(job.config)
    about = [
        f"and a vocabulary of {recipe.tokenizer.vocab_size:,} tokens, from {job.config.model}",
        f"{job.config.data}: {len(recipe.rows) - len(recipe.validation):,} conversations in "
        f"{len(recipe.packed):,} rows to train on, {len(recipe.validation):,} to validate",
    ]
    with job.owned(recipe, about):
        result = job.fit(recipe, title=f"on {job.config.data}", unit="nats per token")
        exact = result.get("exact_match")
        job.console.print(
            f"\n{recipe.step} steps in {duration(recipe.elapsed)}: validation loss "
            f"[bold]{result['val_loss']:.4f}[/] nats per token"
            + ("" if exact is None else f", {100 * exact:.1f} % of the answers exact")
        )
        result["answers"] = _show(job, recipe)
        judged = [[answer] for answer in recipe.judged]
        write_answers(job.out, recipe.model, recipe.tokenizer, recipe.step, judged)
        job.report(result, "chat --checkpoint")


def _show(job: Job, recipe: SFT) -> list[dict[str, str]]:
    """Some validation questions and what the model answers."""
    rows = recipe.validation[:SHOWN]
    shown = [
        {"question": messages[-1].content if messages else "", "answer": answer}
        for (messages, _), answer in zip(
            [row.question() for row in rows],
            answers(recipe.model, recipe.tokenizer, rows),
            strict=True,
        )
    ]
    text = "".join(f"> {each['question']}\n{each['answer']}\n" for each in shown)
    with atomic_write(job.out / "sample.txt") as file:
        file.write(text.encode())
    job.console.rule("some answers", style="dim")
    job.console.print(text, end="", markup=False, soft_wrap=True)
    job.console.rule(style="dim")
    return shown
