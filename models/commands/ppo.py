"""`minitorch ppo`: reinforcement with a critic, from a reward model or from a program."""

from pathlib import Path

from minitorch import nn
from minitorch.errors import ConfigError
from minitorch.tokenizers import Tokenizer
from models import checkpoints
from models.commands.grpo import (
    Diary,
    judge_of,
    load_reward_model,
    prompts_and_rewards,
    reference_of,
    train_and_show,
)
from models.commands.running import Job, training_command
from models.families import with_tokenizer
from models.recipes.judging import by_model
from models.recipes.ppo import Ppo, PpoConfig
from models.recipes.start import load_base
from models.reward_model import RewardModel


@training_command(
    PpoConfig,
    shortcuts={
        "model": "Folder of the model to begin with.",
        "task": "Name of a task: addition, countdown, strings, counting, calculator, bilingual.",
        "data": "JSONL file of prompts, instead of a task.",
        "reward": "FILE.py:function, with =weight, several with commas.",
        "reward_model": "Folder of a reward model, instead or besides.",
        "reference": "Folder of the model to stay near.",
    },
    examples=(
        "minitorch ppo --model runs/sft --task addition",
        "minitorch ppo --model runs/sft --data prompts.jsonl --reward-model runs/reward "
        "--preset ppo_max --set max_tokens=32",
        "minitorch ppo --resume runs/ppo --set steps=400",
    ),
)
def ppo(job: Job) -> None:
    """Train a model by reinforcement, with a critic that says what to expect of a text so far.

    Scores come from a reward model, from functions as of `minitorch grpo`, or from a task. Each
    token is weighed by how much better it went after it than the critic had expected, less a
    penalty for leaving the reference. --preset chooses ppo, ppo_max or vapo.
    """
    config = job.config
    if bool(config.task) == bool(config.data):
        raise ConfigError("ppo: expected either --task or --data; got both or neither")
    model, tokenizer = load_base(config.model, config.seed)
    source, rewards, task = prompts_and_rewards(
        config, tokenizer, model.config.max_position_embeddings
    )
    judge = judge_of(config, tokenizer)
    diary = Diary(job.out, tokenizer)
    recipe = Ppo(
        config,
        model,
        tokenizer,
        source,
        rewards,
        task=task,
        reference=reference_of(config, tokenizer),
        on_rollouts=diary.write,
        critic=_critic(config, tokenizer),
        score=judge and by_model(judge, tokenizer),
    )
    train_and_show(job, recipe, diary)


def _critic(config: PpoConfig, tokenizer: Tokenizer) -> RewardModel:
    """A reward model, or the policy with a head that says 0 of everything."""
    folder = config.critic or config.reward_model
    if folder:
        return load_reward_model(folder, tokenizer).requires_grad_(True)
    trunk, _ = with_tokenizer(checkpoints.model_folder(Path(config.model)))
    critic = RewardModel(trunk)
    nn.init.zeros_(critic.score.weight)
    return critic
