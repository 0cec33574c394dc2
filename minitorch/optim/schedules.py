"""Learning-rate schedules: functions of the step alone.

A schedule maps a step, counted from 0, to a factor for the learning rate: factor 1 is the lr that
the optimizer was given. Being a pure function it has nothing to save, and a resumed run needs the
step only.

Warm-up is factor (step + 1) / (warmup_steps + 1), so the first step already moves (a factor
of 0 there, as in transformers' schedules, wastes a batch), and step `warmup_steps` is the first at
factor 1. What follows is a function of the progress p from 0 at that step to 1 at `total_steps`,
and stays at its final value after that:

    linear        1 - (1 - final) p
    cosine        final + (1 - final) (1 + cos(pi p)) / 2
    wsd           1, then linear from 1 to final over the last decay_steps
    inverse_sqrt  sqrt((warmup_steps + 1) / (step + 1))

Sources: cosine: Loshchilov & Hutter 2016 (arXiv 1608.03983), eq. 5, without restarts; inverse_sqrt:
Vaswani et al. 2017 (arXiv 1706.03762), eq. 3; wsd (warm-up, stable, decay): Hu et al. 2024,
"MiniCPM" (arXiv 2404.06395), section 4.2, whose decay is exponential; Hägele et al. 2024 (arXiv
2405.18392) compare shapes of the decay and find a straight line to 0 on a par with the cosine.
"""

import math
from collections.abc import Callable
from typing import Any

from minitorch.errors import CheckpointError, ConfigError
from minitorch.optim.optimizer import Optimizer

Schedule = Callable[[int], float]


def constant(warmup_steps: int = 0) -> Schedule:
    """Warm-up, then 1."""
    _check("constant", warmup_steps=warmup_steps)
    return lambda step: _warmup(step, warmup_steps)


def linear(total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    """Warm-up, then a straight line to `final` at total_steps."""
    _check("linear", total_steps=total_steps, warmup_steps=warmup_steps, final=final)

    def factor(step: int) -> float:
        progress = _progress(step, warmup_steps, total_steps)
        return _warmup(step, warmup_steps) * (1 - (1 - final) * progress)

    return factor


def cosine(total_steps: int, warmup_steps: int = 0, final: float = 0.1) -> Schedule:
    """Warm-up, then half a wave of the cosine down to `final` at total_steps."""
    _check("cosine", total_steps=total_steps, warmup_steps=warmup_steps, final=final)

    def factor(step: int) -> float:
        progress = _progress(step, warmup_steps, total_steps)
        wave = (1 + math.cos(math.pi * progress)) / 2
        return _warmup(step, warmup_steps) * (final + (1 - final) * wave)

    return factor


def wsd(
    total_steps: int, warmup_steps: int = 0, decay_steps: int = 0, final: float = 0.0
) -> Schedule:
    """Warm-up, 1, and over the last decay_steps a straight line to `final` at total_steps.

    Until the decay begins nothing depends on total_steps, so a run can be prolonged from there.
    """
    _check(
        "wsd",
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        final=final,
    )

    def factor(step: int) -> float:
        progress = _progress(step, total_steps - decay_steps, total_steps)
        return _warmup(step, warmup_steps) * (1 - (1 - final) * progress)

    return factor


def inverse_sqrt(warmup_steps: int) -> Schedule:
    """Warm-up, then falling as 1 / sqrt(step); it has no end."""
    _check("inverse_sqrt", warmup_steps=warmup_steps)
    return lambda step: min(_warmup(step, warmup_steps), math.sqrt((warmup_steps + 1) / (step + 1)))


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / (warmup_steps + 1))


def _progress(step: int, start: int, end: int) -> float:
    """0 up to start, 1 from end on, linear between."""
    if step >= end:
        return 1.0
    return 0.0 if step <= start else (step - start) / (end - start)


def _check(
    name: str,
    *,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    final: float = 0.0,
) -> None:
    if warmup_steps < 0 or decay_steps < 0:
        raise ConfigError(
            f"{name}: expected steps of at least 0; got warmup_steps={warmup_steps}, "
            f"decay_steps={decay_steps}"
        )
    if total_steps is not None and warmup_steps + decay_steps > total_steps:
        raise ConfigError(
            f"{name}: expected warm-up and decay to fit into total_steps={total_steps}; "
            f"got {warmup_steps} + {decay_steps} steps"
        )
    if not 0 <= final <= 1:
        raise ConfigError(f"{name}: expected final between 0 and 1; got {final}")


class LRScheduler:
    """Keeps the `lr` of every group of an optimizer at its first value times schedule(step).

    Made before training, it sets the lr of step 0; `step()` after each optimizer.step() sets the
    next. On resuming, load_state_dict() of the optimizer and of this, in either order.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule):
        self.optimizer = optimizer
        self.schedule = schedule
        self.base_lrs: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.last_step = 0
        self._set()

    def step(self) -> None:
        """Set the learning rates for the step that follows."""
        self.last_step += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group, as set for the coming optimizer.step()."""
        factor = self.schedule(self.last_step)
        return [base * factor for base in self.base_lrs]

    def _set(self) -> None:
        lrs = self.get_last_lr()
        if len(lrs) != len(self.optimizer.param_groups):
            raise ConfigError(
                f"LRScheduler: expected {len(lrs)} parameter groups; got "
                f"{len(self.optimizer.param_groups)}. Make the scheduler after adding the groups"
            )
        for group, lr in zip(self.optimizer.param_groups, lrs):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """The step and the first learning rates; JSON can hold them."""
        return {"last_step": self.last_step, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where state_dict() was taken; sets the learning rates of that step."""
        if len(state_dict["base_lrs"]) != len(self.base_lrs):
            raise CheckpointError(
                f"LRScheduler.load_state_dict: expected {len(self.base_lrs)} groups; the saved "
                f"state has {len(state_dict['base_lrs'])}"
            )
        self.last_step = int(state_dict["last_step"])
        self.base_lrs = [float(lr) for lr in state_dict["base_lrs"]]
        self._set()
