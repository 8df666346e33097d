"""Streams that stop no run, as a process of its own meets them."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
from hpcai.output import steady
import sys
steady()
for i in range(10_000):
    print("größe", "x" * 100)
    print("größe", "x" * 100, file=sys.stderr)
sys.stdout.flush()
print(sys.stdout.isatty())
"""


WAYS = ["| head -1", "2>&1 | true", "> /dev/full 2> /dev/full", ">&- 2>&-", "2>&- | cat", "> /dev/null 2>&1"]


@pytest.mark.parametrize("redirect", WAYS)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_nothing_is_raised_whatever_becomes_of_the_output(redirect: str, encoding: str) -> None:
    script = f"set -o pipefail; PYTHONIOENCODING={encoding} {sys.executable} -c '{CODE}' {redirect}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr


def test_what_is_taken_is_whole_and_in_order() -> None:
    code = "from hpcai.output import steady; import sys; steady(); print('é\\n' * 5000, end=''); print('end', file=sys.stderr)"
    command = [sys.executable, "-X", "utf8", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "é\n" * 5000, "end\n")
