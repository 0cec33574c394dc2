"""What a launch may ask for, and the errors where it asks for more."""

import subprocess
from pathlib import Path

from models.emulation import compile_program

TOO_LARGE = "too many threads for a cooperative launch"


def test_errors_of_launches_and_ranks_in_clusters(tmp_path):
    program = compile_program(Path(__file__).with_name("launches.cu"), tmp_path)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == [*["invalid argument"] * 4, *[TOO_LARGE] * 2, "no error", "0", "11", "2", "13"]
    assert "simt: launch: the clusters do not divide the grid" in done.stderr
    assert "at most 16384 threads run at once, and 32768 are to" in done.stderr


def test_variables_may_have_the_names_of_what_is_built_in(tmp_path):
    program = compile_program(Path(__file__).with_name("names.cu"), tmp_path)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "0", "1", "2", "100", "101", "102", "14"]
