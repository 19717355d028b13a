"""A talk with a user whose keyboard is a list: commands, turns, overflow, and what is kept."""

import contextlib
import json
import os
import re
import signal
import stat
import time

import pytest

import qwq_ref
from qwq_ref.cli import ending
from qwq_ref.cli.chat.commands import COMMANDS
from qwq_ref.cli.chat.conversation import Dialogue
from qwq_ref.cli.chat.settings import names
from qwq_ref.cli.chat.talk import Talk
from qwq_ref.cli.chat.view import AnswerView
from qwq_ref.engine.scheduler import Scheduler
from qwq_ref.engine.settings import Settings
from qwq_ref.engine.turns import certain_prefix
from qwq_ref.errors import UsageError

ASKED = dict.fromkeys(("max_tokens", "seed", "think_budget", "reasoning_effort", "stop", "loop_guard"))


class Keys:
    """A user who types a list of lines, waits for all computation before each, and then leaves.

    Among them may be functions, which are called.
    """

    interactive, edits = True, False

    def __init__(self, lines):
        self.lines = list(lines)
        self.drafts = []

    def read(self, draft=""):
        self.drafts.append(draft)
        while self.lines and callable(self.lines[0]):
            self.lines.pop(0)()
        return self.lines.pop(0) if self.lines else None

    def open(self):
        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def nano():
    return qwq_ref.load("qwq-nano", weights="q8", kv="int8", context=256)


@pytest.fixture
def heard():
    """Let the process hear Ctrl-C: a background shell's children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def begin(nano, capsys):
    """Return a function that lets a user type lines -> the talk, its stdout, its stderr."""
    schedulers = []

    def talk(*lines, first=None, model=nano, interactive=True, edits=False, **asked):
        scheduler = Scheduler(model, running=1, waiting=1)
        schedulers.append(scheduler)
        keys = Keys(lines)
        keys.interactive, keys.edits = interactive, edits
        own = Talk("nano", model, scheduler, Dialogue(), ASKED | {"temperature": 0} | asked, keys, True)
        own.run(first)
        out, err = capsys.readouterr()
        return own, out, err

    yield talk
    for scheduler in schedulers:
        scheduler.close()


def test_turns(begin, nano):
    talk, out, err = begin("What is 12+34?", "What is 12+35?")
    one, two = talk.conversation.turns
    alone = nano.generate("What is 12+34?", temperature=0)
    text = "".join(piece.text for piece in alone if piece.kind == "answer")
    assert (one.answer, one.ending) == (text, None)
    assert out == f"{one.answer}\n{two.answer}\n"
    assert one.thinking in err
    again = nano.generate(talk.conversation.messages()[:-1], temperature=0)
    assert "".join(piece.text for piece in again if piece.kind == "answer") == two.answer
    assert err.count("context ") == 2


def test_the_next_turn_begins_with_a_prefix_that_is_computed(begin, nano):
    scheduler = None

    def waited():
        deadline = time.monotonic() + 60
        while scheduler.call(lambda: scheduler.warming):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    scheduler = Scheduler(nano, running=1, waiting=1)
    talk = Talk("nano", nano, scheduler, Dialogue(), ASKED | {"temperature": 0}, Keys([]), True)
    talk.keyboard.lines = ["What is 12+34?", waited, "What is 12+35?"]
    before = []
    show = talk.view.show
    talk.view.show = lambda prepared: before.append(show(prepared)) or before[-1]
    talk.run()
    first, second = (generation for generation, _ in before)
    prefix = certain_prefix(nano, talk.conversation.messages()[:2])
    assert second.run.cached == len(prefix) > first.run.cached
    scheduler.close()


def test_ctrl_c_at_any_time_keeps_the_answer(begin, monkeypatch, heard):
    """Before the first token, and between the last one and its place in the conversation."""
    with ending.signals(own=False), ending.ctrl_c():
        submit = Scheduler.submit

        def pressed(self, prepared, deliver):
            signal.raise_signal(signal.SIGINT)
            return submit(self, prepared, deliver)

        monkeypatch.setattr(Scheduler, "submit", pressed)
        talk, _, err = begin("What is 12+34?")
        assert talk.conversation.turns[0].ending == "stopped"
        assert "[stopped; " in err
        monkeypatch.undo()
        show = AnswerView.show

        def late(self, prepared):
            found = show(self, prepared)
            signal.raise_signal(signal.SIGINT)
            return found

        monkeypatch.setattr(AnswerView, "show", late)
        talk, *_ = begin("What is 12+34?")
        assert (talk.conversation.turns[0].ending, len(talk.conversation.turns)) == (None, 1)


def test_every_command_has_help(begin):
    _, _, err = begin("/help")
    for command in COMMANDS.values():
        assert f"/{command.name}" in err
    assert max(map(len, err.splitlines())) <= 110


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/hlep", "qwq: /hlep: is not a command (did you mean help?)"),
        ("/xyzzy", "qwq: /xyzzy: is not a command: /help lists them"),
        ("/clear now", "qwq: /clear: takes nothing behind it"),
        ("/save", "qwq: /save: needs FILE"),
        ("/undo", "qwq: /undo: finds no message"),
        ("/regen", "qwq: /regen: finds no message"),
        ("/edit x", "qwq: /edit: finds no message"),
        ("/trim", "qwq: /trim: finds no turn"),
        ("/regen x", "qwq: /regen: "),
        ("/set temp -1", "qwq: temp: must be at least 0, got -1"),
        ("/set tmep 1", "qwq: tmep: is not a setting (did you mean temp"),
        ("/set zzz 1", "qwq: zzz: is not a setting: /set lists them"),
        ("/set temp", "qwq: /set: needs a value for temp"),
        ("/set system x", "qwq: system: has a command: /system"),
        ("/set top-p 0", "qwq: top_p: must be above 0"),
        ("/think loudly", "qwq: /think: takes show, hide"),
        ("/think budget x", "qwq: think-budget: must be an integer, got x"),
        ("/think effort lots", "qwq: reasoning-effort: must be one of none"),
        ("/seed x", "qwq: seed: must be an integer, got x"),
        ("/load /nowhere/x", "qwq: /nowhere/x: cannot be read (No such file or directory)"),
        ("/file /nowhere/x", "qwq: /nowhere/x: cannot be read"),
        ("/save /nowhere/x", "qwq: /nowhere/x: cannot be written"),
    ],
)
def test_a_wrong_command_is_one_line_and_the_talk_goes_on(begin, line, words):
    _, out, err = begin(line, "/seed 5")
    assert (out, err.splitlines()[-1]) == ("", "seed: 5")
    assert len(err.splitlines()) == 2
    assert err.startswith(words), err


def test_a_pipe_ends_at_an_error(begin):
    with pytest.raises(UsageError, match="is not a command"):
        begin("/hlep", interactive=False)


def test_settings(begin, nano):
    talk, _, err = begin("/set temperature 0.5", "/set top_k=3", "/set stop END", "/set logit-bias 5=1", "/set")
    assert talk.table.asked["temperature"] == 0.5
    assert talk.table.asked["top_k"] == 3
    assert Settings.checked(**talk.table.asked).stop == ("END",)
    rows = dict(line.split(maxsplit=1) for line in err.splitlines())
    assert set(rows) == set(names().values())
    assert (rows["temp"], rows["top-k"], rows["stop"], rows["top-p"]) == (
        "0.5  (set)",
        "3  (set)",
        "END  (set)",
        "0.95",
    )
    talk, _, err = begin("/set temp default", "/set")
    assert f"temp {nano.sampling().temperature:g}" in " ".join(err.split())


def test_effort_and_budget_take_each_others_place(begin):
    talk, _, err = begin("/think budget 5", "/think effort low", "/think hide", "/think")
    assert (talk.table.asked["think_budget"], talk.table.asked["reasoning_effort"]) == (None, "low")
    assert err.splitlines()[-1] == "reasoning: folded, effort low"
    assert not talk.view.thinking


def test_folded_reasoning_is_counted(begin):
    _, out, err = begin("/think hide", "What is 12+34?")
    assert "[thought for " in err
    assert "Reverse" not in err + out
    assert "46" in out


def test_undo_clear_and_system(begin):
    talk, _, err = begin("/system Be brief.", "hello", "hello again", "/undo")
    assert [turn.user for turn in talk.conversation.turns] == ["hello"]
    assert "dropped: hello again" in err
    assert talk.conversation.system == "Be brief."
    talk, *_ = begin("/system Be brief.", "hello", "/clear")
    assert talk.conversation == Dialogue([], "Be brief.")
    talk, *_ = begin("/system Be brief.", "/system none")
    assert talk.conversation.system is None


def test_regen_takes_another_seed_and_edit_another_message(begin):
    talk, *_ = begin("hello", "/regen 5", seed=3, temperature=1.5)
    assert ([turn.seed for turn in talk.conversation.turns], talk.table.asked["seed"]) == ([5], 3)
    talk, *_ = begin("hello", "/regen", seed=3, temperature=1.5)
    assert talk.conversation.turns[0].seed != 3
    talk, *_ = begin("hello", "/edit What is 1+2?", seed=3)
    assert [(turn.user, turn.seed) for turn in talk.conversation.turns] == [("What is 1+2?", 3)]
    talk, *_ = begin("hello", "/edit", "What is 1+2?", edits=True)
    assert [turn.user for turn in talk.conversation.turns] == ["What is 1+2?"]
    assert talk.keyboard.drafts[2] == "hello"
    _, _, err = begin("hello", "/edit")
    assert "needs TEXT" in err


def test_a_regeneration_that_does_not_fit_keeps_the_old_answer(begin):
    talk, _, err = begin("What is 1+2?", "/edit " + "x " * 400)
    assert [turn.user for turn in talk.conversation.turns] == ["What is 1+2?"]
    assert "the context has 256" in err


def test_save_and_load(begin, tmp_path):
    path = tmp_path / "talk.json"
    talk, *_ = begin("/system Be brief.", "What is 12+34?", f"/save {path}", f"/save {path}")
    other, _, err = begin(f"/load {path}", "What is 12+35?")
    assert other.conversation.turns[:1] == talk.conversation.turns
    assert other.conversation.system == "Be brief."
    assert f"{path}: 1 turn, " in err
    (tmp_path / "mine").write_text("mine")
    _, _, err = begin(f"/save {tmp_path / 'mine'}")
    assert "exists already, and is no conversation" in err
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "bad").write_text("{}")
    other, _, err = begin("hello", f"/load {tmp_path / 'bad'}")
    assert len(other.conversation.turns) == 1
    assert "qwq_chat: must be 1" in err
    assert json.loads(path.read_text())["model"] == "nano"


def test_a_saved_conversation_is_not_computed_again(begin, tmp_path, nano, capsys):
    path = tmp_path / "talk.json"
    talk, _, err = begin("What is 12+34?", "What is 12+35?", f"/save {path}")
    assert f"{path}.qwqcache: " in err
    prefix = certain_prefix(nano, talk.conversation.messages())
    other, _, err = begin(f"/load {path}", "What is 12+36?")
    cached = int(re.search(r"prompt \d+, (\d+) cached", err)[1])
    assert 0.5 * len(prefix) < cached  # the reasoning of the last turn is gone, and the rest was computed
    (tmp_path / "talk.json.qwqcache").write_bytes(b"x" * 100)
    other, _, err = begin(f"/load {path}")
    assert len(other.conversation.turns) == 2
    assert "the conversation is computed again" in err


def test_export_replaces_its_own_pages_alone(begin, tmp_path):
    page = tmp_path / "talk.md"
    begin("hello", f"/export {page}", "hi", f"/export {page}")
    assert page.read_text().count("## User") == 2
    _, _, err = begin("hello", f"/export {page}")
    assert "exists already" in err


def test_a_file_goes_with_the_next_message(begin, tmp_path):
    (tmp_path / "a.txt").write_text("some text\n")
    (tmp_path / "b.bin").write_bytes(b"\0\1")
    talk, _, err = begin(f"/file {tmp_path / 'a.txt'}", f"/file {tmp_path / 'b.bin'}", "Sum up:", "hello")
    assert [turn.user for turn in talk.conversation.turns] == ["Sum up:\n\nsome text", "hello"]
    assert "tokens go with your next message" in err
    assert "is not text" in err


def test_a_context_that_overflows_is_announced_before_any_work(begin):
    talk, out, err = begin("What is 12+34?", "What is 12+35?", lambda: None, "x " * 190, "/stats")
    assert len(talk.conversation.turns) == 2
    assert talk.pending == "x " * 190
    assert "tokens, with one token of an answer; the context has 256" in err
    assert "/trim drops the oldest turns" in err
    assert out.count("boxed") == 2


def test_trim_drops_the_oldest_turns_by_name_and_asks_again(begin):
    talk, _, err = begin("What is 12+34?", "What is 12+35?", "What is 12+36? " + "x " * 130, "/trim")
    assert "dropped: What is 12+34?" in err
    assert talk.conversation.turns[-1].user.startswith("What is 12+36?")
    assert talk.pending is None
    talk, _, err = begin("hello", "hi", "/trim 1")
    assert [turn.user for turn in talk.conversation.turns] == ["hi"]
    _, _, err = begin("hello", "/trim")
    assert "everything fits" in err


def test_room_made_by_hand_and_enter_ask_again(begin):
    talk, *_ = begin("What is 12+34?", "What is 12+35?", "What is 1+2? " + "x " * 190, "/clear", "")
    assert [turn.user[:12] for turn in talk.conversation.turns] == ["What is 1+2?"]


def test_a_message_that_never_fits_can_be_changed(begin):
    talk, _, err = begin("x " * 400, "/edit hello")
    assert "/edit changes the message" in err
    assert [turn.user for turn in talk.conversation.turns] == ["hello"]


def test_reasoning_that_uses_up_its_tokens_says_so(begin):
    talk, _, err = begin("What is 12+34?", max_tokens=5)
    assert "qwq: the reasoning used up max-tokens (5 tokens)" in err
    assert talk.conversation.turns[0].ending.startswith("the reasoning used up")


def test_an_empty_line_does_nothing(begin):
    talk, out, err = begin("", "  ", "\n")
    assert (talk.conversation.turns, out, err) == ([], "", "")


def test_the_history_is_of_the_user_alone(tmp_path, monkeypatch):
    pytest.importorskip("prompt_toolkit")
    from qwq_ref.cli.chat.editor import open_history

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "state" / "qwq").mkdir(parents=True)
    (tmp_path / "state" / "qwq" / "chat_history").touch(0o644)
    history = open_history()
    history.append_string("hello\nyou")
    file = tmp_path / "state" / "qwq" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [*open_history().load_history_strings()] == ["hello\nyou"]
    history.store_string("\ud800")  # no error


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/self/mem"), reason="needs a folder that refuses")
def test_a_history_that_cannot_be_kept_is_told(monkeypatch, capsys, tmp_path):
    pytest.importorskip("prompt_toolkit")
    from qwq_ref.cli.chat.editor import open_history

    (tmp_path / "state").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    open_history().append_string("hello")
    assert "no history is kept" in capsys.readouterr().err
