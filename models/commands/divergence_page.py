"""What a student leaves to be read: its own continuations of the text, and where it leaves them.

Held over a token, the pointer shows what student and teacher give to it, and the divergence that
the run makes small, in the place of the token; the greater it is, the redder the token.
"""

from pathlib import Path

import numpy as np

from models.recipes.distill import Distillation
from models.rollout_page import RED, Legend, record, write_both

LEGEND = Legend(
    {"log_probs": "log p", "teacher": "teacher's", "divergences": "divergence"},
    "divergences",
    (RED, "far from the teacher"),
    None,
    reward="divergence",
)
SHOWN, WRITTEN = 16, 64  # continuations, and the most tokens of one


def write_divergences(out: Path, run: Distillation) -> None:
    """Write OUT/rollouts.jsonl and OUT/rollouts.html of continuations of validation text."""
    longest = run.config.block_size
    start = min(run.config.prompt_length, longest - 1)
    text, length = np.asarray(run.corpus.validation), min(start + WRITTEN, longest)
    places = np.linspace(0, len(text) - start, SHOWN).astype(int)
    with run.averaged_weights():
        ids = run.continued([text[i : i + start].tolist() for i in places], length)
        student, teacher, divergences = run.compared(ids, start)
    rows = []
    for number, written in enumerate(ids[:, start:].tolist()):
        values = {
            "log_probs": student[number].tolist(),
            "teacher": teacher[number].tolist(),
            "divergences": divergences[number].tolist(),
        }
        rows.append(
            record(
                run.step,
                number,
                run.tokenizer.decode(ids[number, :start].tolist()),
                [run.tokenizer.decode([token]) for token in written],
                [True] * len(written),
                values,
                divergences[number].mean(),
                {},
                False,
            )
        )
    write_both(out, rows, "the student's words", LEGEND)
