"""Whether training with products in bfloat16 follows training in float32: both loss curves.

    python tests/benchmarks/mixed_precision.py [--seeds 3] [--runs DIR] [--json FILE]

Runs `minitorch train` (its default model, text and 1,000 steps) once for each seed and precision.
Runs that are in DIR already are read, not repeated. What the precision changes is to be held
against what another seed changes, in float32.
"""

import argparse
import json
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import minitorch
from minitorch.io import write_json
from models.machine import processor

PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    """Train what is missing, print the last losses, and write the curves as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/mixed_precision"))
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    curves = {
        precision: [curve(options.runs, precision, seed) for seed in range(options.seeds)]
        for precision in PRECISIONS
    }
    for precision, runs in curves.items():
        last = [run["val_loss"][-1] for run in runs]
        print(f"{precision:8}  {' '.join(f'{loss:.4f}' for loss in last)}  "
              f"mean {statistics.mean(last):.4f}")  # fmt: skip
    if options.json:
        content = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "command": f"python tests/benchmarks/mixed_precision.py --seeds {options.seeds}",
            "processor": processor(),
            "version": minitorch.__version__,
            "results": curves,
        }
        write_json(options.json, content)


def curve(runs: Path, precision: str, seed: int) -> dict[str, list[float]]:
    """Steps and validation losses of one run."""
    out = runs / f"{precision}-{seed}"
    if not (out / "log.jsonl").exists():
        command = ["train", "--out", str(out), "--seed", str(seed), "--set"]
        program = [sys.executable, "-c", "from models.cli import main; main()"]
        subprocess.run([*program, *command, f"precision={precision}"], check=True)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {key: [row[key] for row in rows] for key in ("step", "val_loss")}


if __name__ == "__main__":
    main()
