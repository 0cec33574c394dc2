"""`minitorch grpo`: let a model write, judge it by a program, and learn from the difference."""

from pathlib import Path

import numpy as np

from minitorch.errors import ConfigError
from minitorch.tokenizers import Tokenizer
from minitorch.tokenizers import load as load_tokenizer
from models import checkpoints
from models.commands.running import Job, duration, training_command
from models.environments.rewards import Reward
from models.environments.tasks import Task
from models.families import Model, with_tokenizer
from models.recipes.completions import Completions
from models.recipes.groups import Batch
from models.recipes.grpo import Grpo
from models.recipes.grpo_config import GrpoConfig
from models.recipes.judging import by_model
from models.recipes.prompts import (
    FileSource,
    Source,
    TaskSource,
    find_task,
    load_function,
    load_rewards,
)
from models.recipes.start import check_same_vocabulary, load_base
from models.recipes.supervision import Supervision, by_function, by_process_model
from models.reward_model import RewardModel
from models.rollout_page import (
    append_rollouts,
    read_rollouts,
    record,
    write_page,
    write_rollouts,
)

SHOWN = 4  # groups of a step that are written down


@training_command(
    GrpoConfig,
    shortcuts={
        "model": "Folder of the model to begin with.",
        "task": "Name of a task: addition, countdown, strings, counting, calculator, bilingual.",
        "data": "JSONL file of prompts, instead of a task.",
        "reward": "FILE.py:function, with =weight, several with commas.",
        "reward_model": "Folder of a reward model, instead or besides.",
        "process_reward": "FILE.py:function for steps, with advantage=process.",
        "reference": "Folder of the model to stay near.",
    },
    examples=(
        "minitorch grpo --model runs/sft --task addition",
        "minitorch grpo --model runs/sft --preset dapo --data train.jsonl "
        "--reward my_rewards.py:is_right --set max_tokens=32",
        "minitorch grpo --resume runs/grpo --set steps=400",
    ),
)
def grpo(job: Job) -> None:
    """Train a model by reinforcement, from rewards that a program gives, or a reward model.

    Every step the model completes some prompts several times, and completions become likelier that
    earned more than others of the same prompt. --preset chooses a member of the family: grpo,
    dr_grpo, dapo, gspo, cispo, rloo, reinforce++, kimi. OUT/rollouts.html shows what it wrote.

    A reward is a function reward(prompts, completions, **columns) -> list of numbers or None, where
    the columns are what the rows of the data hold besides the prompt. A task has its own. Of single
    steps: score(prompts, steps, **columns) -> list of lists of numbers, where steps are texts.
    """
    config = job.config
    if bool(config.task) == bool(config.data):
        raise ConfigError("grpo: expected either --task or --data; got both or neither")
    model, tokenizer = load_base(config.model, config.seed)
    source, rewards, task = prompts_and_rewards(
        config, tokenizer, model.config.max_position_embeddings
    )
    judge = judge_of(config, tokenizer)
    diary = Diary(job.out, tokenizer)
    recipe = Grpo(
        config,
        model,
        tokenizer,
        source,
        rewards,
        task=task,
        supervision=supervision_of(config, tokenizer),
        score=judge and by_model(judge, tokenizer),
        reference=reference_of(config, tokenizer),
        on_rollouts=diary.write,
    )
    train_and_show(job, recipe, diary)


def prompts_and_rewards(
    config: GrpoConfig, tokenizer: Tokenizer, context: int
) -> tuple[Source, list[tuple[Reward, float]], Task | None]:
    """The prompts, their rewards, and the task if it is one; a reward model may stand for these."""
    rewards, judged = load_rewards(config.reward), bool(config.reward_model)
    if config.task:
        task = find_task(config.task)
        source = TaskSource(task, tokenizer, config.seed)
        return source, rewards or ([] if judged else list(task.rewards)), task
    if not rewards and not judged:
        raise ConfigError(
            "reward: --data needs a reward; give one by --reward FILE.py:function, or by "
            "--reward-model FOLDER"
        )
    longest = context - config.max_tokens
    data = Path(config.data)
    return FileSource(data, tokenizer, config.val_fraction, config.seed, longest), rewards, None


def reference_of(config: GrpoConfig, tokenizer: Tokenizer) -> Model | None:
    """The model of the KL term: one of its own, or the one that this run begins with.

    None where there is no such term, and where the model without its adapters is the reference.
    """
    if not config.beta or (config.lora_rank and not config.reference):
        return None
    folder = checkpoints.model_folder(Path(config.reference or config.model))
    model, other = with_tokenizer(folder)
    check_same_vocabulary(other, tokenizer, folder)
    return model.requires_grad_(False)


def judge_of(config: GrpoConfig, tokenizer: Tokenizer) -> RewardModel | None:
    """The reward model, if there is to be one."""
    return load_reward_model(config.reward_model, tokenizer) if config.reward_model else None


def supervision_of(config: GrpoConfig, tokenizer: Tokenizer) -> Supervision | None:
    """What judges single steps: a function, a process reward model, or nothing."""
    if config.process_model:
        judge = by_process_model(load_reward_model(config.process_model, tokenizer))
    elif config.process_reward:
        judge = by_function(load_function("process_reward", config.process_reward), tokenizer)
    else:
        return None
    return Supervision(judge, tokenizer, config.step_end)


def load_reward_model(folder: str, tokenizer: Tokenizer) -> RewardModel:
    """A reward model that only judges, of the same tokens."""
    path = checkpoints.model_folder(Path(folder))
    model = RewardModel.from_pretrained(path).requires_grad_(False)
    check_same_vocabulary(load_tokenizer(path / "tokenizer.json"), tokenizer, folder)
    return model


class Diary:
    """What a run wrote down of its rollouts, and the page of it."""

    def __init__(self, out: Path, tokenizer: Tokenizer):
        self.jsonl, self.html = out / "rollouts.jsonl", out / "rollouts.html"
        self.tokenizer = tokenizer

    def drop_after(self, step: int) -> None:
        """Forget what a run that stopped wrote after its checkpoint."""
        kept = [row for row in read_rollouts(self.jsonl) if row["step"] <= step]
        write_rollouts(self.jsonl, kept)

    def write(
        self, step: int, batch: Batch, completions: Completions, advantages: np.ndarray
    ) -> None:
        """Add the first groups of a step."""
        size = batch.rewards.shape[1]
        rows = []
        for i, rollout in enumerate(batch.rollouts[: SHOWN * size]):
            end = len(rollout.completion_ids)
            rows.append(
                record(
                    step,
                    i // size,
                    batch.prompts[i // size].text,
                    [self.tokenizer.decode([token]) for token in rollout.completion_ids],
                    rollout.mask,
                    {"log_probs": rollout.log_probs, "advantages": advantages[i, :end].tolist()},
                    batch.rewards.ravel()[i],
                    {name: values[i] for name, values in batch.given.items()},
                    rollout.finished,
                )
            )
        append_rollouts(self.jsonl, rows)
        self.page(f"{self.html.parent.name}: rollouts")

    def page(self, title: str) -> None:
        """Write the page anew."""
        write_page(self.html, read_rollouts(self.jsonl), title)


def train_and_show(job: Job, recipe: Grpo, diary: Diary) -> None:
    """Train, keep the rollouts to be read, and say how well it writes now."""
    config = job.config
    judges = [f"{getattr(r, '__name__', 'reward')} × {weight:g}" for r, weight in recipe.rewards]
    judges += [config.reward_model] if config.reward_model else []
    about = [
        f"and a vocabulary of {recipe.tokenizer.vocab_size:,} tokens",
        f"{config.prompts} prompts a step, {config.group_size} completions of each; rewards: "
        + ", ".join(judges),
    ]
    with job.owned(recipe, about):
        diary.drop_after(recipe.step)
        result = job.fit(recipe, title=f"on {config.task or Path(config.data).name}", unit="loss")
        diary.page(f"{job.out.name}: rollouts")
        job.console.print(
            f"\n{recipe.step} steps in {duration(recipe.elapsed)}: validation reward "
            f"[bold]{result.get('val_reward', float('nan')):.3f}[/] sampled, "
            f"{result.get('greedy_reward', float('nan')):.3f} greedy"
        )
        job.console.print(f"rollouts {diary.html}", soft_wrap=True)
        job.report(result, "sample --checkpoint")
