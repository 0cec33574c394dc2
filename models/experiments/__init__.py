"""Proofs by experiment: each file trains small models that differ in one thing, and claims why.

`python -m models.experiments` lists them. What they gave is committed in results/, and the book's
chapter on them (docs/experiments.md) shows it beside what was expected.
"""

from importlib import import_module
from pathlib import Path

from models.experiments.experiment import Experiment

NAMES = (
    "context_extension",
    "expert_balance",
    "recall",
    "qk_norm",
    "multi_token",
    "facts",
    "query_norm",
    "cache_diets",
    "passkey",
    "sparse_chunks",
    "instructions",
    "reward_model",
    "preferences",
    "cartpole",
    "distillation",
    "overoptimisation",
    "grpo_addition",
    "critic",
    "length_bias",
    "short_answers",
    "r1",
    "long_to_short",
    "clip_higher",
    "llama2",
    "constitution",
    "merging",
)
RESULTS = Path(__file__).parent / "results"


def load(name: str) -> Experiment:
    """The experiment that the module of this name declares."""
    return import_module(f"models.experiments.{name}").EXPERIMENT
