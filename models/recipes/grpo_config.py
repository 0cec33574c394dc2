r"""The settings of reinforcement learning from groups, and the members of the family as presets.

    preset        advantage              loss            average    besides
    grpo          (r - mean) / std       clip            sequence   KL k3 in the loss
    dr_grpo       r - mean               clip            constant
    dapo          (r - mean) / std       clip, .28 up    token      groups that teach, overlong
    gspo          (r - mean) / std       gspo            sequence
    cispo         (r - mean) / std       cispo           token
    rloo          r - mean of others     reinforce       token      KL in the reward
    reinforce++   whitened               clip            token      KL in the reward, by token
    kimi          r - mean               mirror_descent  group      length reward, optimizer anew

Sources: `minitorch.rl`, with the papers at each function.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from minitorch.errors import ConfigError
from models.options import option
from models.recipes.post_training import AdapterSettings

ADVANTAGES = (
    "grpo",
    "dr_grpo",
    "rloo",
    "reinforce++",
    "reinforce++_baseline",
    "process",
    "none",
)


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(AdapterSettings):
    """All that decides what a run of reinforcement learning computes."""

    model: str = option("", "folder of the model to begin with", fixed=True)
    reference: str = option("", "folder of the model to stay near; none: the one that it began as")
    task: str = option("", "name of a task: `addition`, `countdown`, ...", fixed=True)
    data: str = option("", "JSONL file of prompts with the columns that the rewards read")
    reward: str = option("", "rewards: FILE.py:function, with =weight, several with commas")
    reward_model: str = option("", "folder of a model that judges, of `minitorch reward`")
    val_fraction: float = option(0.1, "share of the file for validation", above=0, below=1)

    prompts: int = option(32, "prompts of one step", at_least=1, fixed=True)
    group_size: int = option(8, "completions of each prompt", at_least=1, fixed=True)
    max_tokens: int = option(0, "longest completion; 0: that of the task", at_least=0)
    temperature: float = option(1.0, "of sampling, and of the policy that is trained", above=0)
    top_p: float = option(1.0, "share of the probability that is sampled from", above=0, at_most=1)
    places: int = option(256, "completions written at once", at_least=1)
    max_calls: int = option(2, "of a task's tool, in one completion", at_least=0)

    advantage: str = option("grpo", "what a reward is compared with", choices=ADVANTAGES)
    loss: str = option(
        "clip",
        "what is minimised",
        choices=("clip", "gspo", "cispo", "reinforce", "mirror_descent"),
    )
    aggregation: str = option(
        "sequence", "what is averaged over", choices=("sequence", "token", "constant")
    )
    clip_low: float = option(0.2, "how far below 1 a ratio may go", above=0)
    clip_high: float = option(0.2, "how far above", above=0)
    dual_clip: float = option(0.0, "the most a bad token weighs, above 1; 0: no bound", at_least=0)
    max_ratio: float = option(5.0, "with `cispo`, the greatest weight", above=0)
    tau: float = option(0.1, "with `mirror_descent`, how much the policy may move", above=0)
    sampler_cap: float = option(
        0.0, "greatest correction for what the sampler computes otherwise; 0: none", at_least=0
    )
    epochs: int = option(1, "times that completions are learnt from", at_least=1)
    minibatches: int = option(1, "optimizer steps of one epoch", at_least=1)

    beta: float = option(0.04, "weight of the KL divergence from the reference", at_least=0)
    reference_interval: int = option(
        0, "steps after which the policy of then is the reference; 0: it stays as it is",
        at_least=0, fixed=True,
    )  # fmt: skip
    optimizer_interval: int = option(
        0, "steps after which the policy's optimizer begins anew; 0: it never does", at_least=0
    )
    kl: str = option("k3", "its estimator", choices=("k1", "k2", "k3", "k3_with_gradient_of_k2"))
    kl_ratio: bool = option(False, "multiply the estimate by p / p_sampled, for its true gradient")
    kl_in_reward: bool = option(False, "take beta k1 from the rewards, not from the loss")

    process_reward: str = option(
        "", "with advantage=process, what scores each step of a completion: FILE.py:function"
    )
    process_model: str = option("", "or the folder of a process reward model that does")
    step_end: str = option("\n", "text of the token that ends a step")

    priority: bool = option(
        False, "draw prompts in proportion to how often they are failed", fixed=True
    )
    success_memory: float = option(
        0.5, "share of a prompt's old success rate in the new one", at_least=0, below=1
    )
    curriculum: str = option(
        "", "column that says how hard a prompt is: the easiest come first", fixed=True
    )
    curriculum_steps: int = option(100, "steps until the hardest prompts may come", at_least=1)
    problems: int = option(
        0, "prompts of a task that priority and curriculum choose from; of a file it is all",
        at_least=0, fixed=True,
    )  # fmt: skip

    segment_tokens: int = option(
        0, "tokens that a completion grows by before a step may go on without it; 0: it ends in "
        "the step that begins it", at_least=0, fixed=True,
    )  # fmt: skip
    learn_earlier: bool = option(
        True, "with segment_tokens, learn from the tokens of earlier steps too"
    )
    dynamic_sampling: int = option(
        0, "times that groups of equal rewards are replaced by others", at_least=0
    )
    overlong_margin: int = option(
        0, "tokens before max_tokens in which the reward falls by 1; 0: none", at_least=0
    )
    overlong_filter: bool = option(False, "learn nothing from completions that were cut off")
    length_weight: float = option(0.0, "weight of Kimi's reward for being short", at_least=0)
    length_from: int = option(0, "the step from which it counts", at_least=0)

    steps: int = option(200, "batches of completions", at_least=1)
    batch_size: int = option(256, "completions in one forward pass", at_least=1)
    optimizer: str = option(
        "adamw", "update rule", choices=("adamw", "muon", "lion", "adafactor", "sgd"), fixed=True
    )
    learning_rate: float = option(2e-4, "the highest learning rate", above=0)
    schedule: str = option(
        "constant", "of the learning rate", choices=("cosine", "linear", "wsd", "constant")
    )
    warmup_fraction: float = option(
        0.0, "share of the steps in which it rises to learning_rate", at_least=0, at_most=1
    )
    weight_decay: float = option(0.0, "of matrices and embeddings, not of vectors", at_least=0)
    eval_interval: int = option(20, "steps between evaluations", at_least=1)
    eval_prompts: int = option(200, "prompts of an evaluation", at_least=1)
    rollout_interval: int = option(10, "steps between rollouts that are written down", at_least=1)
    checkpoint_interval: int = option(50, "steps between checkpoints", at_least=1)

    command: ClassVar[str] = "grpo"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "grpo": {},
        "dr_grpo": {"advantage": "dr_grpo", "aggregation": "constant", "beta": 0.0},
        "dapo": {
            "clip_high": 0.28,
            "aggregation": "token",
            "beta": 0.0,
            "dynamic_sampling": 4,
            "overlong_margin": 4,
        },
        "gspo": {"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "beta": 0.0},
        "cispo": {"loss": "cispo", "aggregation": "token", "beta": 0.0},
        "rloo": {
            "advantage": "rloo",
            "loss": "reinforce",
            "aggregation": "token",
            "kl_in_reward": True,
        },
        "reinforce++": {"advantage": "reinforce++", "aggregation": "token", "kl_in_reward": True},
        "kimi": {
            "advantage": "dr_grpo",
            "loss": "mirror_descent",
            "beta": 0.0,
            "optimizer_interval": 1,
            "length_weight": 0.5,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.advantage == "rloo" and self.group_size == 1:
            raise ConfigError(
                "group_size: with advantage=rloo expected at least 2, as a completion is compared "
                "with the others of its group; got 1"
            )
        if self.prompts % self.minibatches:
            raise ConfigError(
                f"minibatches: expected a divisor of prompts = {self.prompts}, as a group is not "
                f"divided; got {self.minibatches}"
            )
        if self.gradient_accumulation != 1:
            raise ConfigError(
                "gradient_accumulation: expected 1, as batch_size says how many completions one "
                f"forward pass has; got {self.gradient_accumulation}"
            )
        if self.dual_clip and self.dual_clip <= 1:
            raise ConfigError(f"dual_clip: expected 0, or more than 1; got {self.dual_clip}")
        if self.reference_interval and (self.lora_rank or not self.beta):
            raise ConfigError(
                "reference_interval: expected a beta above 0 and lora_rank=0, as with LoRA the "
                "reference is the model without its adapters; got "
                f"beta={self.beta} and lora_rank={self.lora_rank}"
            )
        if self.segment_tokens:
            self._check_segments()
        self._check_process()
        per_token = self.advantage == "process" or self.advantage.startswith("reinforce++")
        if per_token and self.loss in ("gspo", "mirror_descent"):
            raise ConfigError(
                f"loss: {self.loss} takes one advantage for a completion, and {self.advantage} "
                "gives each token its own"
            )

    def _check_segments(self) -> None:
        """ConfigError for what cannot be learnt from tokens that several policies drew."""
        if self.top_p < 1 or self.sampler_cap:
            raise ConfigError(
                "segment_tokens: expected top_p=1 and sampler_cap=0, as of an earlier policy only "
                "the probability of a draw is known; got "
                f"top_p={self.top_p} and sampler_cap={self.sampler_cap}"
            )
        if self.loss == "reinforce" and self.learn_earlier:
            raise ConfigError(
                "segment_tokens: loss=reinforce has no ratio to the policy that drew a token; set "
                "learn_earlier=false, or another loss"
            )

    def _check_process(self) -> None:
        """ConfigError where steps are to be judged and nothing does it, or the other way round."""
        process, judges = self.advantage == "process", [self.process_reward, self.process_model]
        if sum(map(bool, judges)) != process:
            raise ConfigError(
                "process_reward: expected either this or process_model with advantage=process, and "
                f"neither otherwise; got advantage={self.advantage!r}, process_reward="
                f"{self.process_reward!r} and process_model={self.process_model!r}"
            )
        whole = self.kl_in_reward or self.overlong_margin or self.length_weight
        if process and whole:
            raise ConfigError(
                "advantage: process looks at the scores of steps alone; kl_in_reward, "
                "overlong_margin and length_weight change the rewards of whole completions"
            )
