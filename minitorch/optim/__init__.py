"""Optimizers, gradient clipping, learning-rate schedules and averages of parameters."""

from minitorch.optim import schedules
from minitorch.optim.adafactor import Adafactor
from minitorch.optim.adam import Adam, AdamW
from minitorch.optim.clip import clip_grad_norm_, clip_grad_scale, clip_grad_value_
from minitorch.optim.ema import EMA
from minitorch.optim.lion import Lion
from minitorch.optim.muon import Muon, muon_groups, orthogonalize
from minitorch.optim.optimizer import Optimizer
from minitorch.optim.schedules import LRScheduler
from minitorch.optim.sgd import SGD

__all__ = [
    "EMA",
    "SGD",
    "Adafactor",
    "Adam",
    "AdamW",
    "LRScheduler",
    "Lion",
    "Muon",
    "Optimizer",
    "clip_grad_norm_",
    "clip_grad_scale",
    "clip_grad_value_",
    "muon_groups",
    "orthogonalize",
    "schedules",
]
