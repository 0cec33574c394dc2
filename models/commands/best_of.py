"""`minitorch best-of`: sample, judge, keep the best, as rows to be fine-tuned on."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from minitorch.errors import ConfigError, DataError
from minitorch.io import atomic_write
from minitorch.tokenizers import Tokenizer
from models.best_of import best_of, row_of
from models.commands.grpo import load_reward_model
from models.environments.rewards import Reward
from models.recipes.data import prompt_ids, read_rows
from models.recipes.judging import Score, by_model, by_rewards
from models.recipes.prompts import Prompt, TaskSource, find_task, load_rewards
from models.recipes.start import load_base

FILE = click.Path(path_type=Path)


@click.command(
    "best-of",
    epilog="""
    \b
    Examples:
      minitorch best-of --model runs/grpo --task addition --at-least 1 --out rows.jsonl
      minitorch best-of --model runs/sft --data prompts.jsonl --reward-model runs/reward \\
        --max-tokens 32 --samples 16 --out rows.jsonl
      minitorch sft --model runs/base --data rows.jsonl
    """,
)
@click.option("--model", required=True, help="Folder of the model that writes.")
@click.option("--task", default="", help="Name of a task to draw prompts from.")
@click.option("--data", type=FILE, help="JSONL file of prompts, instead of a task.")
@click.option("--reward", default="", help="FILE.py:function, with =weight, several with commas.")
@click.option("--reward-model", default="", help="Folder of a reward model, instead.")
@click.option("--prompts", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--samples", default=8, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--max-tokens", default=0, type=click.IntRange(min=0), help="Of a completion.  [the task's]"
)
@click.option("--temperature", default=1.0, show_default=True)
@click.option("--at-least", default=float("-inf"), help="Score of what is kept.  [any]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--out", required=True, type=FILE, help="Where the rows go, as JSONL.")
@click.option("--json", "as_json", is_flag=True, help="Print what was kept as JSON.")
def best_of_command(
    model: str,
    task: str,
    data: Path | None,
    reward: str,
    reward_model: str,
    prompts: int,
    samples: int,
    max_tokens: int,
    temperature: float,
    at_least: float,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Sample several completions of each prompt, and keep the best of each for `minitorch sft`.

    Of equally good ones the shortest is kept, and none that did not end by itself.
    """
    if bool(task) == bool(data):
        raise ConfigError("best-of: expected either --task or --data; got both or neither")
    if reward and reward_model:
        raise ConfigError("best-of: expected --reward or --reward-model; got both")
    policy, tokenizer = load_base(model, seed)
    longest = max_tokens or (find_task(task).longest_completion if task else 0)
    if longest == 0:
        raise ConfigError("--max-tokens: expected the length of the longest completion; got 0")
    context = policy.config.max_position_embeddings
    asked = _asked(task, data, tokenizer, prompts, seed, context - longest)
    rewards = load_rewards(reward) or (list(find_task(task).rewards) if task else [])
    found = best_of(
        policy,
        tokenizer,
        [prompt for _, prompt in asked],
        _score(rewards, reward_model, tokenizer),
        samples=samples,
        max_tokens=longest,
        temperature=temperature,
        at_least=at_least,
        seed=seed,
    )
    rows = [
        row_of(field, best, prompt.columns)
        for (field, prompt), best in zip(asked, found, strict=True)
        if best.completion is not None
    ]
    with atomic_write(out) as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    result = {
        "out": str(out),
        "prompts": len(asked),
        "kept": len(rows),
        "mean_score": float(np.mean([best.scores.mean() for best in found])),
        "kept_score": float(np.mean([row["score"] for row in rows])) if rows else None,
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{out}: {len(rows)} of {len(asked)} prompts have a completion that is kept, of mean score "
        f"{result['kept_score'] or 0:.3f}; all that was sampled has {result['mean_score']:.3f}"
    )


def _asked(
    task: str, data: Path | None, tokenizer: Tokenizer, count: int, seed: int, longest: int
) -> list[tuple[Any, Prompt]]:
    """The prompts as the rows have them, and as models and rewards read them."""
    if data is None:
        drawn = TaskSource(find_task(task), tokenizer, seed).take(0, count)
        return [(prompt.text, prompt) for prompt in drawn]
    found = []
    rows = read_rows(data)[:count]
    for row in rows:
        if row.fields.keys() != rows[0].fields.keys():
            raise DataError(
                f"{row.where}: expected the keys of the first row, as rewards read them as "
                f"columns; got {', '.join(row.fields)}"
            )
        field = row.fields.get("prompt")
        text = "\n".join(message.content for message in row.prompt())
        columns = {k: v for k, v in row.fields.items() if k not in ("prompt", "completion")}
        found.append((field, Prompt(text, tuple(prompt_ids(row, tokenizer, longest)), columns)))
    return found


def _score(rewards: list[tuple[Reward, float]], judge: str, tokenizer: Tokenizer) -> Score:
    if judge:
        return by_model(load_reward_model(judge, tokenizer), tokenizer)
    if not rewards:
        raise ConfigError("best-of: --data needs --reward FILE.py:function, or --reward-model")
    return lambda prompts, rollouts: by_rewards(rewards, prompts, rollouts, tokenizer)[0]
