"""`minitorch distill`: a small model learns from a large one, on a text."""

from models.commands.divergence_page import write_divergences
from models.commands.running import Job, duration, training_command
from models.recipes.distill import DistillConfig, prepared


@training_command(
    DistillConfig,
    shortcuts={
        "teacher": "Folder, or run, of the model that is learnt from.",
        "student": "Folder, or run, of the model that learns; a new one unless given.",
        "model": "Family of a new student.",
        "data": "Text: a file, a folder, a URL, or the embedded corpus.",
    },
    examples=(
        "minitorch distill --teacher runs/nano --out runs/small",
        "minitorch distill --teacher runs/nano --set n_layer=1 --set temperature=4",
        "minitorch distill --teacher runs/a --student runs/b --model llama --set on_policy=0.5",
        "minitorch distill --resume runs/small",
    ),
)
def distill(job: Job) -> None:
    """Train a student to say about each next token of a text what its teacher says.

    It learns the teacher's whole distribution, softened, rather than the one token that came. The
    vocabulary is the teacher's. OUT/rollouts.html shows what the student writes, and where the
    teacher would have said something else. Ctrl-C saves and stops; --resume goes on as if it never
    had stopped.
    """
    console = job.console
    with console.status(f"reading {job.config.teacher or 'the teacher'} and {job.config.data}"):
        run = prepared(job.config)
    corpus, teacher = run.corpus, run.teacher
    about = [
        f"and a vocabulary of {corpus.tokenizer.vocab_size:,} {corpus.unit}s",
        f"teacher: {job.config.teacher}, {teacher.config.title} with "
        f"{teacher.num_parameters():,} parameters, validation loss {run.teacher_loss:.4f}",
        f"{corpus.name}: {len(corpus.train):,} {corpus.unit}s to train on, "
        f"{len(corpus.validation):,} to validate",
    ]
    with job.owned(run, about):
        result = job.fit(run, title=f"taught on {corpus.name}", unit=f"nats per {corpus.unit}")
        console.print(
            f"\n{run.step} steps in {duration(run.elapsed)}: validation loss "
            f"[bold]{result['val_loss']:.4f}[/] nats per {corpus.unit}, "
            f"{result['to_teacher']:+.4f} to the teacher's"
        )
        write_divergences(job.out, run)
        job.report({**result, "teacher_loss": run.teacher_loss}, "sample --checkpoint")
