"""Commands on a terminal: bars that leave no pieces, Ctrl-C and its last word, narrow and dumb terminals."""

import re
import shlex
import subprocess
import sys
import textwrap

import pytest

from qwq_ref import core
from tests.support.terminals import Screen, Terminal

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
BAR = r"\d+%"


def script(text, **options):
    return Terminal(command=[sys.executable, "-c", textwrap.dedent(text)], **options)


def bars(terminal):
    """All bars that were drawn, as texts."""
    return re.findall(r"\r([^\r\n\x1b]+)\x1b\[K", terminal.raw)


def test_the_screen_of_the_tests():
    screen = Screen(4)
    screen.feed("abcdef\rx\x1b[K\r\n\x1b[2myz\x1b[0m\b!")
    assert screen.lines == ["abcd", "x", "y!"]


# --- Bars and other output -------------------------------------------------------------------------------------------

MIXED = """
    import logging, sys, threading, warnings
    from qwq_ref.cli import progress, streams
    progress._WAIT = progress._EVERY = 0
    with streams.standard():
        with progress.progress_bar("outer", 30, "rows") as outer, progress.progress_bar("inner", 1e9, "B") as bar:
            warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
            logging.basicConfig()
            for i in range(6):
                bar(1e8)
                print("line", i)
                bar(1e6)
                print("error", i, file=sys.stderr)
                logging.warning("log %d", i)
                warnings.warn(f"warning {i}")
                print("a line ", end="", flush=True)
                bar(1e6)
                print("in pieces ", end="", file=sys.stderr, flush=True)
                threading.Thread(target=bar, args=(1e6,)).start()
                print(i)
            bar.says("done", 1e9)
            print("end")
            outer(3)
        print("after")
"""


@pytest.mark.parametrize("columns", [20, 40, 80, 120])
def test_bars_leave_no_pieces(columns):
    terminal = script(MIXED, columns=columns)
    status, lines = terminal.end()
    wanted = Screen(columns)
    for i in range(6):
        for line in (f"line {i}", f"error {i}", f"WARNING:root:log {i}", f"warning {i}", f"a line in pieces {i}"):
            wanted.feed(f"{line}\r\n")
    wanted.feed("end\r\nafter\r\n")
    assert (status, lines) == (0, wanted.lines)
    drawn = bars(terminal)
    assert len(drawn) > 12
    assert max(map(len, drawn)) <= columns - 4  # the terminal echoes ^C there
    assert columns == 20 or all(bar.startswith(("inner", "outer", "done")) for bar in drawn)
    assert any(("left" if columns > 20 else "%") in bar for bar in drawn)
    assert ("B, " in terminal.raw and "/s, " in terminal.raw) == (columns > 60)


@pytest.mark.parametrize(("environment", "shown"), [({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, True)])
def test_terminals_that_show_less(environment, shown):
    terminal = script(MIXED, environment=environment)
    lines = terminal.end()[1]
    assert lines[0] == "line 0"
    assert bool(bars(terminal)) == shown
    assert shown or "\x1b" not in terminal.raw
    assert not re.search(r"\x1b\[[0-9]", terminal.raw)  # no colour


def test_a_bar_in_an_ascii_terminal():
    terminal = script(MIXED, environment={"PYTHONIOENCODING": "ascii"})
    assert terminal.end()[0] == 0
    assert terminal.raw.isascii()
    assert "##" in terminal.raw


def test_short_work_shows_no_bar():
    terminal = script(MIXED.replace("progress._WAIT = progress._EVERY = 0", ""))
    assert terminal.end()[0] == 0
    assert not bars(terminal)


def test_the_answer_in_a_file_and_the_bar_on_the_terminal(tmp_path):
    with open(tmp_path / "out", "w") as out:
        terminal = script(MIXED, to=out)
        assert terminal.end()[1][:3] == ["error 0", "WARNING:root:log 0", "warning 0"]
    assert (tmp_path / "out").read_text().splitlines()[0] == "line 0"
    assert bars(terminal)


def test_rates():
    text = """
        import time
        from qwq_ref.cli import progress, streams
        progress._WAIT = 0
        with streams.standard(), progress.progress_bar("steps", 10, "steps") as bar:
            bar.begin(4)
            bar.note = "loss 1.234"
            time.sleep(0.5)
            bar(1)
            time.sleep(0.1)
            bar(4.9)
    """
    terminal = script(text, columns=120)
    assert terminal.end()[0] == 0
    first, *rest = bars(terminal)
    assert re.fullmatch(r"steps:  40%\|[^|]+\| 4/10 steps(, loss 1\.234)?", first)  # nothing is known of the rate
    assert re.fullmatch(r"steps:  50%\|[^|]+\| 5/10 steps, .*( s each|/s), 00:0\d left, loss 1\.234", rest[0])
    assert re.fullmatch(r"steps:  99%\|[^|]+\| 9/10 steps, .*/s, 00:00 left, loss 1\.234", rest[-1])


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupted(terminal, pattern=BAR):
    terminal.until(pattern)
    terminal.press("\x03")
    status, lines = terminal.end()
    assert status == 130
    assert not re.search(BAR, "\n".join(lines)), lines
    assert "Traceback" not in terminal.raw
    return [line for line in lines if line]


def test_generate(scripted):
    terminal = Terminal("generate", "-m", scripted("two", "4!", ends=False), "what?", environment={"NO_COLOR": "1"})
    lines = interrupted(terminal, r"4!")
    assert lines[0].startswith("two")
    assert re.fullmatch(r"qwq: interrupted: \d+ output tokens were generated", lines[-1])


def test_control_characters_of_a_model_are_shown():
    """They could write to the clipboard, or hide text. In a file they stay."""
    text = """
        import sys
        from qwq_ref.cli import streams
        from qwq_ref.cli.writer import Writer
        with streams.standard():
            writer = Writer(("thinking", "answer"))
            for kind in ("thinking", "answer"):
                writer.write("a\\x1b]52;c;aGk=\\x07\\tb\\x9b2J\\rc\\x7f" + chr(10), kind)
    """
    terminal = script(text, environment={"NO_COLOR": "1"})
    assert terminal.end()[0] == 0
    assert terminal.raw.count("a\\x1b]52;c;aGk=\\x07\tb\\x9b2J\\x0dc\\x7f") == 2
    assert "\x1b" not in terminal.raw
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(text)], capture_output=True)
    assert done.stdout == "a\x1b]52;c;aGk=\x07\tb\x9b2J\rc\x7f\n".encode()


@pytest.mark.parametrize(("columns", "count"), [(200, 1), (80, 2), (40, 3)])
def test_the_speed_fits(scripted, columns, count):
    status, lines = Terminal("generate", "-m", scripted("two", "4!"), "-s", "1", "what?", columns=columns).end()
    said = [line for line in lines if line][2:]
    assert (status, len(said)) == (0, count)
    assert re.fullmatch(
        r"prompt: \d+ tokens, [\d.]+ tokens/s; output: \d+ tokens, [\d.]+ tokens/s; peak memory: \d+ MiB; seed: \d+",
        " ".join(said),
    )
    assert all(line.endswith(";") for line in said[:-1])


SLEEPS = """
    import sys, time
    from qwq_ref import cli
    def sleeps(given, options):
        print(TEXT, end="", file=sys.stderr, flush=True)
        time.sleep(60)
    cli.parse = sleeps
    sys.exit(cli.main(["info"]))
"""


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_an_open_line_is_ended(kind):
    terminal = script(SLEEPS.replace("TEXT", "'Well? '"), environment={"TERM": kind})
    assert interrupted(terminal, r"Well\? ") == ["Well? ^C", "qwq: interrupted"]


@pytest.mark.parametrize(("kind", "piped", "echo"), [("xterm", 0, []), ("xterm", 1, ["^C"]), ("dumb", 0, ["^C"])])
def test_the_echo_of_ctrl_c(kind, piped, echo):
    """Nothing stands before the last word. The echo stays if another program may have printed in its line."""
    terminal = script(SLEEPS.replace("TEXT", "'a\\n'"), environment={"TERM": kind}, to=-3 if piped else None)
    assert interrupted(terminal, "a") == ["a", *echo, "qwq: interrupted"]


def test_a_message_fits():
    text = """
        from qwq_ref.cli import screen, streams
        with streams.standard():
            screen.tell("qwq: one two three; four; five-six-seven-eight-nine-ten eleven; end")
    """
    narrow = ["qwq: one two three;", "four;", "five-six-seven-eight-nine-ten", "eleven; end", ""]
    assert script(text, columns=20).end()[1] == [*narrow[:2], "five-six-seven-eight", "-nine-ten", *narrow[3:]]
    assert script(text, columns=30).end()[1] == ["qwq: one two three; four;", *narrow[2:]]
    assert script(text, columns=200).end()[1] == ["qwq: one two three; four; " + " ".join(narrow[2:4]), ""]
    assert script(text, columns=20, environment={"TERM": "dumb"}).end()[1][0] == narrow[0]


SLOW_PROMPT = """
    import sys, time
    from qwq_ref.cli import main, progress
    from qwq_ref.engine.session import Session
    progress._WAIT = 0
    def extend(self, ids, told=None, *_):
        for _ in range(100):
            told(len(ids) / 100)
            time.sleep(0.2)
    Session.extend = extend
    sys.exit(main(["generate", "what? " * 60, "--raw"]))
"""


ASKS = """
    import sys, time
    from qwq_ref.cli import progress, streams
    from qwq_ref.cli.screen import screen
    progress._WAIT = 0
    with streams.standard():
        print(repr(screen.ask("Well? ", sys.stdin)))
        with progress.progress_bar("steps", 10, "steps") as bar:
            time.sleep(0.2)
            bar(1)
        print("end", file=sys.stderr)
"""


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
@pytest.mark.parametrize(("keys", "answer"), [("yes\n", "yes\n"), ("\x04", "")])
def test_after_a_question(keys, answer, kind):
    """The next line begins on its own, and a bar comes."""
    terminal = script(ASKS, environment={"TERM": kind})
    terminal.until(r"Well\? ")
    terminal.press(keys)
    status, lines = terminal.end()
    assert (status, lines) == (0, [f"Well? {answer}".rstrip(), repr(answer), "end", ""])
    assert bool(bars(terminal)) == (kind != "dumb")


def test_ctrl_c_at_a_question():
    """The signal often comes right after the system call that wrote the question: it is not written again."""
    asks = ASKS.replace("with streams.standard():", "from qwq_ref import cli\n    def asks(*_):")
    asks += "    cli.parse = asks\n    sys.exit(cli.main(['info']))\n"
    for _ in range(8):
        assert interrupted(script(asks), r"Well\? ") == ["Well? ^C", "qwq: interrupted"]


def test_generate_in_the_prompt():
    lines = interrupted(script(SLOW_PROMPT.replace("* 60", "* 250")), r"prompt: +\d+%")
    assert re.fullmatch(r"peak memory: \d+ MiB; seed: \d+", lines[-2])
    assert re.fullmatch(r"qwq: interrupted: \d+ of \d+ prompt tokens were computed", lines[-1])


def test_a_short_prompt_has_no_bar():
    terminal = script(SLOW_PROMPT.replace("0.2", "0.01").replace("* 60", "* 5").replace("--raw", "-n1"))
    terminal.end()
    assert "prompt: " not in "".join(bars(terminal))


SLOW_LOADING = """
    import sys, time
    from qwq_ref.cli import main, progress
    from qwq_ref.engine.pieces import Pieces
    progress._WAIT = 0
    plain = Pieces.run
    def slow(*arguments):
        for name in plain(*arguments):
            yield name
            time.sleep(0.3)
    Pieces.run = slow
    sys.exit(main(sys.argv[1:]))
"""


@needs_core
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["generate", "1+1?"], "the model was not loaded yet"),
        (["eval", "-n", "5"], "the model was not loaded yet"),
        (["convert", "OUT/new/er"], "the same command goes on from here"),
    ],
)
def test_loading_and_packing(tmp_path, arguments, word):
    arguments = [argument.replace("OUT", str(tmp_path)) for argument in arguments]
    command = [sys.executable, "-c", textwrap.dedent(SLOW_LOADING), *arguments]
    lines = interrupted(Terminal(command=command, columns=200))
    assert lines[-1] == f"qwq: interrupted: {word}"
    assert not list(tmp_path.glob("new/er/*.safetensors"))


def test_eval():
    terminal = Terminal("eval", "-n", "3", "--categories", "add3,sort,units", "--max-tokens", "20", columns=80)
    status, lines = terminal.end(120)
    assert status == 0
    words = [line.split(" ")[0] for line in lines if line]
    assert words[:5] == ["category", "add3", "sort", "units", "mean"]
    assert set(words[5:6]) <= {"energy:"}  # what a meter says, or that there is none
    assert max(map(len, lines)) <= 80
    lines = interrupted(Terminal("eval", "-n", "400", columns=80), r"addsub2: +\d+%")
    assert re.fullmatch(r"qwq: interrupted: \d+ of 31 categories were measured", lines[-1])


def test_train(tmp_path):
    small = """
        import dataclasses, sys
        from qwq_ref.cli import main, progress
        from qwq_ref.train import corpus, sft
        progress._WAIT = progress._EVERY = 0
        texts = corpus.texts
        corpus.texts = lambda seed, count: texts(seed, 300)
        sft.STAGES["base"] = dataclasses.replace(sft.STAGES["base"], rows=2)
        sys.exit(main())
    """
    arguments = ["train", "base", "-o", str(tmp_path / "a run"), "--steps", "5000"]
    given = [sys.executable, "-c", textwrap.dedent(small), *arguments]
    lines = interrupted(Terminal(command=given, columns=200), r"2/5000 steps")
    done, command = re.fullmatch(r"qwq: interrupted: the same command resumes at step (\d+): (.*)", lines[-1]).groups()
    assert shlex.split(command) == ["qwq", *arguments]
    lines = interrupted(Terminal(command=given, columns=200), rf"{int(done)}/5000 steps")
    assert int(re.search(r"resumes at step (\d+)", lines[-1])[1]) > int(done)
    assert interrupted(Terminal(command=given, columns=200))[-1].endswith(command)


def test_golden(tmp_path):
    slow = "from qwq_ref.cli import main, progress; import sys; progress._WAIT = 0; sys.exit(main(sys.argv[1:]))"
    record = ["golden", "record", "-o", str(tmp_path / "pack"), "what? " * 40]
    lines = interrupted(Terminal(command=[sys.executable, "-c", slow, *record], columns=200))
    assert lines[-1] == "qwq: interrupted: no pack was written"
    assert not list(tmp_path.iterdir())


def test_a_page_fits():
    """A wide line goes on below its second column, unless it is a command to copy. Elsewhere, lines are as they are."""
    page = (
        "  name  one two three four\\n- five six seven eight\\n      nine ten eleven twelve\\nto run: a b c d e f g h"
    )
    text = f"""
        from qwq_ref.cli import screen, streams
        with streams.standard():
            screen.show("{page}")
    """
    whole = page.split("\\n")
    assert script(text).end()[1] == [*whole, ""]
    narrow = [
        "  name  one two",
        "        three four",
        "- five six seven",
        "  eight",
        "      nine ten",
        "      eleven twelve",
    ]
    assert script(text, columns=20).end()[1] == [*narrow, "to run: a b c d e f", "g h", ""]


@pytest.mark.parametrize("command", ["info -m qwq-nano", "golden mistakes", "bench --op"])
def test_pages_fit(command):
    """The terminal breaks no word."""
    status, lines = Terminal(*command.split(), columns=80).end()
    assert (status, max(map(len, lines)) <= 80) == (0, True)
    piped = subprocess.run([sys.executable, "-m", "qwq_ref", *command.split()], capture_output=True, text=True)
    assert " ".join(lines).split() == piped.stdout.split()


@needs_core
def test_bench():
    lines = interrupted(Terminal("bench", "--op", "rmsnorm", "-r", "500", columns=80), r"repeat \d+ of 500")
    assert lines[-1].startswith("qwq: interrupted: ")
    assert lines[-1].endswith("rows were measured")
    terminal = Terminal("bench", "-m", "qwq-nano", "-p", "0", "-n", "300", columns=80)
    assert (
        interrupted(terminal, r"tg300, q4\+int8, repeat 1 of 5: +0%")[-1]
        == "qwq: interrupted: 0 of 1 rows were measured"
    )


@needs_core
def test_doctor():
    terminal = Terminal("doctor", "-m", "qwq-nano", columns=100)
    lines = interrupted(terminal, r"measuring: +\d+%")
    assert "speed       not measured: interrupted" in lines
    assert lines[-1] == "qwq: interrupted: the speed of the machine was not measured"
