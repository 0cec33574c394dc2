"""What recycling array buffers saves: page faults and time of a training step, with and without.

    python tests/benchmarks/page_faults.py [--steps 20] [--rounds 5] [--json FILE]

A step of the preset `nano` (GPT-2, 4 layers, 128 wide, 12 sequences of 64 tokens, AdamW), each side
in fresh processes that take turns; medians over all steps. Page faults are the system's own count
(ru_minflt).
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from minitorch.io import write_json

STEP = """
import json, resource, sys, time
import numpy as np
import minitorch as mt
from minitorch import kernels, optim
from models.gpt2 import GPT2, GPT2Config

recycle, steps = sys.argv[1] == "on", int(sys.argv[2])
kernels.recycle_buffers(recycle)
mt.manual_seed(0)
model = GPT2(GPT2Config(vocab_size=103, n_positions=64, n_embd=128, n_layer=4, n_head=4))
optimizer = optim.AdamW(list(model.parameters()), lr=1e-3)
ids, targets = (mt.randint(0, 103, (12, 64)) for _ in range(2))
faults, seconds = [], []
for i in range(steps + 3):
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    optimizer.zero_grad()
    loss = model.loss(ids, targets)
    loss.backward()
    optimizer.step()
    if i >= 3:
        seconds.append(time.perf_counter() - begun)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"faults": faults, "seconds": seconds, "peak_kib": peak}))
"""


def main() -> None:
    """Measure, print both sides and their ratio, and write the JSON."""

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    runs: dict[str, list[dict]] = {"off": [], "on": []}
    for _ in range(options.rounds):
        for side, done in runs.items():
            command = [sys.executable, "-c", STEP, side, str(options.steps)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            done.append(json.loads(output))
    results = {
        side: {
            "page_faults_per_step": statistics.median(f for run in done for f in run["faults"]),
            "ms_per_step": 1e3 * statistics.median(s for run in done for s in run["seconds"]),
            "peak_mib": statistics.median(run["peak_kib"] for run in done) / 1024,
        }
        for side, done in runs.items()
    }
    for side, row in results.items():
        print(
            f"recycling {side:4} {row['page_faults_per_step']:10.0f} page faults a step "
            f"{row['ms_per_step']:8.1f} ms {row['peak_mib']:8.0f} MiB at the peak"
        )
    ratio = results["on"]["ms_per_step"] / results["off"]["ms_per_step"]
    print(f"time with recycling / without: {ratio:.2f}")
    if options.json:
        write_json(
            options.json,
            {
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
                "command": "python tests/benchmarks/page_faults.py "
                f"--steps {options.steps} --rounds {options.rounds}",
                "processor": platform.processor() or platform.machine(),
                "python": platform.python_version(),
                "results": results,
                "time_ratio": ratio,
            },
        )


if __name__ == "__main__":
    main()
