"""`qwq generate --prompts` and Ctrl-C: each answer that is complete is printed once."""

import json
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import signal, sys
from qwq_ref.cli import main, many
printed, real = 0, many._print
def interrupted(*arguments):
    global printed
    printed += 1
    if printed == 2 and {before}:
        signal.raise_signal(signal.SIGINT)
    real(*arguments)
    if printed == 2 and not {before}:
        signal.raise_signal(signal.SIGINT)
many._print = interrupted
sys.exit(main(["generate", "--prompts", sys.argv[1], "--temp", "0", "-n", "20", "-np", "2"]))
"""


@pytest.mark.parametrize("before", [True, False])
def test_ctrl_c_between_two_answers(tmp_path, before):
    (tmp_path / "prompts").write_text("".join(f"What is {i}+{i}?\n" for i in range(6)))
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    command = [sys.executable, "-c", SCRIPT.format(before=before), str(tmp_path / "prompts")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=heed)
    numbers = [json.loads(line)["number"] for line in done.stdout.splitlines()]
    assert done.returncode == 130
    assert numbers[:2] == [0, 1]
    assert len(set(numbers)) == len(numbers)
    assert f"{len(numbers)} of 6 prompts were answered" in done.stderr
