"""Recipes on the emulated device have the losses that they have on the CPU."""

import numpy as np
import pytest

from minitorch.kernels.cuda.extension import is_available
from models.recipes.dpo import DPO, DPOConfig
from models.recipes.reward import Reward, RewardConfig
from models.recipes.sft import SFT, SFTConfig

TINY = {"steps": 2, "batch_size": 2}


def runs(model, data, device):
    common = {"model": str(model), "device": device, **TINY}
    task = {**common, "template": "plain", "task_rows": 12, "eval_rows": 2}
    yield SFT(SFTConfig(**task))
    yield SFT(SFTConfig(**task, packing=True, lora_rank=2))
    yield Reward(RewardConfig(**common, data=str(data)))
    yield DPO(DPOConfig(**common, data=str(data), loss="kto"))


@pytest.mark.skipif(
    not is_available("simt"), reason="minitorch._simt was not built: no C++20 compiler"
)
def test_a_recipe_on_the_device_is_that_on_the_cpu(answering, preferences, tmp_path):
    found = {
        device: [
            [run.train_step()["loss"], run.train_step()["loss"], run.evaluate()["val_loss"]]
            for run in runs(answering, few(preferences, tmp_path), device)
        ]
        for device in ("cpu", "simt")
    }
    np.testing.assert_allclose(found["simt"], found["cpu"], rtol=1e-5)


def few(preferences, folder):
    """The first pairs of a file."""
    path = folder / "few.jsonl"
    path.write_text("".join(preferences.open().readlines()[:8]))
    return path
