"""The side of trl in tests/benchmarks/grpo.py: a process that trains as many steps as it is told.

    python tests/benchmarks/grpo_trl.py FOLDER THREADS SETTINGS

Reads numbers of steps from standard input; after each so many prints the tokens that were written
in them and the seconds that they took. It imports nothing of this project, so that any Python with
trl can run it.
"""

import json
import os
import sys
import time

os.environ["TQDM_DISABLE"] = "1"
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print does not get between the answers

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


class Orders(TrainerCallback):
    """Between steps waits for the next order, and answers the last."""

    def __init__(self) -> None:
        self.tokens = self.left = 0
        self.begun = 0.0

    def on_train_begin(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        self._next(control)

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left == 0:
            print(self.tokens, time.perf_counter() - self.begun, file=OUT, flush=True)
            self._next(control)

    def _next(self, control):  # type: ignore[no-untyped-def]
        line = sys.stdin.readline()
        if not line.strip():
            control.should_training_stop = True
            return
        self.left, self.tokens, self.begun = int(line), 0, time.perf_counter()


def main() -> None:
    """Build the trainer on the folder's model, and obey."""
    folder, threads, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(threads)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{folder}/tokenizer.json",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    orders = Orders()

    def evens(completions, completion_ids, **_):  # type: ignore[no-untyped-def]
        orders.tokens += sum(map(len, completion_ids))
        return [sum(char in "02468" for char in c) / max(len(c), 1) for c in completions]

    count = settings["prompts"] * settings["group_size"]
    config = GRPOConfig(
        output_dir=f"{folder}/trl",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=count,
        num_generations=settings["group_size"],
        max_completion_length=settings["max_tokens"],
        temperature=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        max_steps=1_000_000,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=1,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = Dataset.from_list([{"prompt": prompt} for prompt in settings["rows"]])
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=evens,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[orders],
    )
    trainer.train()


if __name__ == "__main__":
    main()
