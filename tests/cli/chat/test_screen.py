"""`qwq chat` as a user has it: in a real terminal, in a plain one, and in a pipe."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support.terminals import Terminal
from tests.support.tmux import chat, needs_tmux

LOOP = ("--loop-guard", "off")


def at_prompt(screen):
    return screen.rstrip().endswith("\n>")


@pytest.fixture
def state(tmp_path):
    return {"XDG_STATE_HOME": str(tmp_path)}


# --- tmux ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def editor():
    return pytest.importorskip("prompt_toolkit")


@needs_tmux
def test_a_conversation(editor, state, tmp_path):
    with chat("-s", "1", "--temp", "0", environment=state, rows=40) as terminal:
        terminal.until(at_prompt)
        terminal.type("What is 12+34?")
        terminal.press("Enter")
        assert "The answer is \\boxed{46}." in terminal.until(lambda screen: "1,024]" in screen and at_prompt(screen))
        # A message of several lines, by Alt+Enter, by a backslash, by quotes, and by a paste.
        terminal.type("one")
        terminal.press("M-Enter")
        terminal.type("two\\")
        terminal.press("Enter")
        terminal.type("three 你好")
        terminal.press("Enter")
        assert "> one\n. two\n. three 你好\n" in terminal.until(lambda screen: screen.count("1,024]") == 2)
        terminal.type('"""a')
        terminal.press("Enter")
        terminal.type('b"""')
        terminal.press("Enter")
        terminal.until(lambda screen: screen.count("1,024]") == 3)
        terminal.paste("first\nsecond\nthird")
        terminal.until("third")
        terminal.press("Enter")
        terminal.until(lambda screen: screen.count("1,024]") == 4)
        terminal.type(f"/export {tmp_path / 'talk.md'}")
        terminal.press("Enter")
        terminal.until("written")
        # Completion, history, search.
        terminal.type("/und")
        terminal.until("drop the last message")
        terminal.press("Tab")
        terminal.until("> /undo")
        terminal.press("Enter", "Enter")
        terminal.until("dropped: first second third")
        terminal.press("Up", "Up")
        terminal.until("> /export")
        terminal.press("C-c")
        time.sleep(0.3)
        terminal.press("C-r")
        terminal.type("12+")
        terminal.until(lambda screen: re.search(r"What is 12\+34\?\n+I-search backward: 12\+$", screen))
        terminal.press("C-c")
        terminal.until(at_prompt)
        terminal.press("C-d")
        assert terminal.status() == 0
    users = re.findall(r"## User\n\n(.*?)\n\n## Assistant", (tmp_path / "talk.md").read_text(), re.DOTALL)
    assert users == ["What is 12+34?", "one\ntwo\nthree 你好", "a\nb", "first\nsecond\nthird"]
    kept = (tmp_path / "qwq" / "chat_history").read_text()
    assert "+first\n+second\n+third" in kept


@needs_tmux
def test_ctrl_c_keeps_the_partial_answer(editor, state, scripted):
    with chat("-m", scripted("two", "4!", ends=False), *LOOP, environment=state) as terminal:
        terminal.until(at_prompt)
        terminal.type("what?")
        terminal.press("Enter")
        terminal.until("4!4!4!4!")
        terminal.press("C-c")
        screen = terminal.until(lambda screen: at_prompt(screen) and "[stopped; " in screen)
        assert int(re.search(r"stopped; (\d+)", screen)[1]) < 3000  # of 4,078 that fit
        assert "Traceback" not in screen
        terminal.type("/stats")
        terminal.press("Enter")
        assert "conversation: 1 turns" in terminal.until("peak memory")
        terminal.press("C-c")
        terminal.until("Ctrl-C again")
        terminal.type("x")
        terminal.press("C-c")  # a line is dropped, and nothing else
        time.sleep(0.3)
        assert terminal.screen().count("again") == 1
        terminal.press("C-c")
        terminal.until(lambda screen: screen.count("again") == 2)
        terminal.press("C-c")
        assert "Traceback" not in terminal.until("qwq: interrupted")
        assert terminal.status() == 130


@needs_tmux
def test_overflow_and_reasoning_without_end(editor, state):
    with chat("-c", "128", "-n", "80", "--temp", "0", environment=state) as terminal:
        terminal.until(at_prompt)
        terminal.type("What is 12+34?")
        terminal.press("Enter")
        terminal.until(lambda screen: at_prompt(screen) and "of 128]" in screen)
        terminal.type("What is 56+78?")
        terminal.press("Enter")
        screen = terminal.until("/trim drops the oldest turns")
        assert re.search(r"qwq: this needs \d+ tokens, with an answer of up to 80; the context has 128", screen)
        terminal.type("/trim")
        terminal.press("Enter", "Enter")
        assert "dropped: What is 12+34?" in terminal.until("\\boxed{134}")
        terminal.until(at_prompt)
        terminal.type("/clear")
        terminal.press("Enter", "Enter")
        terminal.type("/set max-tokens 5")
        terminal.press("Enter")
        terminal.type("What is 12+34?")
        terminal.press("Enter")
        terminal.until("the reasoning used up max-tokens (5 tokens)")


@needs_tmux
def test_the_terminal_may_change_its_size(editor, state):
    with chat("--temp", "0", environment=state, columns=100) as terminal:
        terminal.until(at_prompt)
        terminal.type("a long line of words " * 4)
        terminal.resize(40, 20)
        time.sleep(0.3)
        terminal.press("C-c")
        terminal.type("What is 12+34?")
        terminal.press("Enter")
        assert "\\boxed{46}" in terminal.until("cached;")
        terminal.resize(120, 30)
        terminal.until(at_prompt)
        terminal.type("/seed 5")
        terminal.press("Enter")
        terminal.until("seed: 5")


@needs_tmux
@pytest.mark.parametrize("no_colour", [False, True])
def test_reasoning_is_dimmed_where_colours_are_wanted(editor, state, no_colour):
    variables = state | ({"NO_COLOR": "1"} if no_colour else {})
    with chat("--temp", "0", environment=variables) as terminal:
        terminal.until(at_prompt)
        terminal.type("What is 12+34?")
        terminal.press("Enter")
        terminal.until("cached")
        styles = set(re.findall(r"\x1b\[[0-9;]*m", terminal.screen(styles=True)))
        assert (not styles) if no_colour else ("\x1b[2m" in styles)


@needs_tmux
def test_another_encoding(editor, state):
    """The terminal is not told to show characters that its locale lacks."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with chat("--temp", "0", environment=state | locale) as terminal:
        terminal.until(at_prompt)
        terminal.type("你好")
        terminal.press("Enter")
        assert "\\u6ca1" in terminal.until(lambda screen: "cached;" in screen and at_prompt(screen))


@needs_tmux
def test_keys_during_an_answer_belong_to_the_next_message(editor, state, scripted):
    with chat("-m", scripted("two", "4!", ends=False), *LOOP, "-n", "1500", environment=state) as terminal:
        terminal.until(at_prompt)
        terminal.type("what?")
        terminal.press("Enter")
        terminal.until("4!4!4!")
        terminal.type("/seed 77")
        terminal.press("Enter")
        screen = terminal.until("seed: 77")
        assert screen.index("cached;") < screen.index("/seed 77")  # nothing of it was in the answer


# --- A plain terminal ------------------------------------------------------------------------------------------------


def plain(*arguments, **how):
    return Terminal("chat", *arguments, environment={"TERM": "dumb"}, **how)


def test_a_dumb_terminal():
    terminal = plain("--temp", "0")
    terminal.until("> ")
    terminal.press("What is \\\n")
    terminal.until(r"\n\. ")
    terminal.press("12+34?\n")
    terminal.until(r"\\boxed\{46\}.*\n.*cached")
    terminal.press("/exit\n")
    status, lines = terminal.end()
    assert status == 0
    assert "\x1b" not in terminal.raw
    assert ". 12+34?" in lines


def test_ctrl_c_in_a_dumb_terminal(scripted):
    terminal = plain("-m", scripted("two", "4!", ends=False), *LOOP)
    terminal.until("> ")
    terminal.press("what?\n")
    terminal.until("4!4!4!")
    terminal.press("\x03")
    terminal.until(r"\[stopped; \d+ tokens stay in the conversation\]")
    assert int(re.search(r"stopped; (\d+)", terminal.raw)[1]) < 3000  # of 4,078 that fit
    terminal.until(r"\]\r?\n> ")
    terminal.press("\x03")
    terminal.until("Ctrl-C again")
    terminal.press("\x03")
    status, lines = terminal.end()
    assert status == 130
    assert [line for line in lines if line][-1] == "qwq: interrupted"
    assert "Traceback" not in terminal.raw


def test_ctrl_d_leaves_in_a_dumb_terminal():
    terminal = plain()
    terminal.until("> ")
    terminal.press("\x04")
    assert terminal.end()[0] == 0


def test_a_terminal_without_the_extra():
    code = "import sys; sys.modules['prompt_toolkit'] = None; import importlib.util as u; find = u.find_spec\n"
    code += "u.find_spec = lambda name, *a: None if name == 'prompt_toolkit' else find(name, *a)\n"
    code += "from qwq_ref.cli import main; sys.exit(main(['chat', '--temp', '0']))"
    terminal = Terminal(command=[sys.executable, "-c", code])
    terminal.until(r"qwq_ref\[chat\]")
    terminal.press("What is 12+34?\n")
    terminal.until(r"cached")
    terminal.press("\x04")
    status, lines = terminal.end()
    assert status == 0
    assert "\n".join(lines).count("prompt_toolkit") == 1


def test_a_signal_ends_the_talk(editor, state):
    terminal = Terminal("chat", environment=state | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"})
    terminal.screen.feed = lambda text: None  # the editor moves the cursor
    terminal.until(">\x1b")
    terminal.process.send_signal(signal.SIGTERM)
    status, _ = terminal.end()
    assert status == 143
    assert "Traceback" not in terminal.raw


# --- A pipe ----------------------------------------------------------------------------------------------------------


def piped(text, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "qwq_ref", "chat", *arguments],
        input=text if isinstance(text, bytes) else text.encode(),
        capture_output=True,
        env=os.environ | environment,
    )


def test_a_pipe_is_answered_line_by_line():
    done = piped("What is 12+34?\n/set temp 0\n\nWhat is 12+35?", "--temp", "0", "--think", "hide")
    assert done.stdout == b"The answer is \\boxed{46}.\nThe answer is \\boxed{46}.\n"
    assert done.returncode == 0
    assert b"\x1b" not in done.stderr


def test_the_first_message_comes_from_the_command_line(tmp_path):
    (tmp_path / "talk").write_text("What is 12+34?\n")
    for words in (["-p", "What is 12+34?"], ["What is 12+34?"], ["-f", str(tmp_path / "talk")]):
        done = piped("", *words, "--temp", "0")
        assert done.stdout == b"The answer is \\boxed{46}.\n"
    assert piped("/help\n", "-p", "/help", "--temp", "0").stdout.count(b"\n") >= 1  # it is a message, not a command


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        (b"/hlep\n", 2, "qwq: /hlep: is not a command (did you mean help?)"),
        (b"\xff\xfe\n", 1, "qwq: standard input: is UTF-16: save it as UTF-8"),
        (b"a\xc3\n", 1, "qwq: standard input: is not UTF-8 (byte 1)"),
        (b"x " * 2000, 2, "qwq: prompt: of "),
    ],
)
def test_an_error_ends_a_pipe(text, status, words):
    done = piped(text)
    assert done.returncode == status
    assert done.stderr.decode().splitlines()[-1].startswith(words)
    assert b"Traceback" not in done.stderr


def test_a_prompt_cache_lives_from_call_to_call(tmp_path):
    file = str(tmp_path / "cache")
    for cached in (False, True):
        done = piped("What is 12+34?\n/stats\n", "--temp", "0", "--prompt-cache", file)
        assert done.returncode == 0, done.stderr
        assert (b"; 0 prompt tokens were cached" not in b" ".join(done.stderr.split())) == cached


@pytest.mark.parametrize("arguments", [["-"], ["-f", "-"], ["--think", "only"], ["--raw"]])
def test_options_that_make_no_sense(arguments):
    done = piped("", *arguments)
    assert (done.returncode, done.stderr.count(b"\n"), done.stdout) == (2, 1, b"")


def test_another_locale():
    done = piped("你好\n", "--temp", "0", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_ctrl_c_ends_a_pipe_with_its_partial_answer(scripted):
    command = [sys.executable, "-m", "qwq_ref", "chat", "-m", str(scripted("two", "4!", ends=False)), *LOOP]
    pipe = subprocess.PIPE
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=heed)
    process.stdin.write(b"what?\n")
    process.stdin.flush()
    assert process.stdout.read(4) == b"4!4!"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert err.endswith(b"qwq: interrupted\n")
