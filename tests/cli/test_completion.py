"""`qwq completion`: each shell runs its script, and completes what is typed."""

import shutil
import subprocess

import pytest

from qwq_ref.cli import COMMANDS, completion, main, parser
from tests.support.paths import DOCS

# Each shell prints the completions of the last word of $LINE, one a line. The scripts are where docs/install.md puts
# them.
PLACES = {
    "bash": ".local/share/bash-completion/completions/qwq",
    "zsh": ".zfunc/_qwq",
    "fish": ".config/fish/completions/qwq.fish",
}
BASH = """
source ~/.local/share/bash-completion/completions/qwq
read -r -a COMP_WORDS <<< "$LINE"
[[ $LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=$LINE; COMP_POINT=${#LINE}
"$(complete -p qwq | sed 's/.* -F \\([^ ]*\\) .*/\\1/')" qwq "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = 'complete -C "$LINE" | string split -f1 \\t'
# zsh completes only in an editor, so one runs on a pseudo-terminal. The widget prints what the editor would add.
ZSH = r"""
zmodload zsh/zpty
zpty editor "PS1= zsh -f -i"
zpty -w editor 'fpath+=~/.zfunc; autoload -Uz compinit; compinit -u -d ~/dump'
zpty -w editor 'compadd() {
  local -a hits; local -i i
  [[ ${@[(I)-[OAD]*]} -gt 0 ]] && { builtin compadd "$@"; return }
  builtin compadd -O hits "$@"; builtin compadd "$@"
  for i in {1..$#hits}; do print -r -- "HIT:$hits[i]"; done
}'
zpty -w editor 'finish() { zle complete-word; print -r -- END; exit }; zle -N finish; bindkey "^X" finish; print READY'
while zpty -r editor line; do [[ $line == READY* ]] && break; done
zpty -w -n editor "$LINE"$'\x18'
while zpty -r editor line; do
  [[ $line == *HIT:* ]] && print -r -- "${${line##*HIT:}%%[[:space:]]*}"
  [[ $line == *END* ]] && break
done
"""
SHELLS = {"bash": ["bash", "--norc", "-c", BASH], "zsh": ["zsh", "-f", "-c", ZSH], "fish": ["fish", "-c", FISH]}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell, place in PLACES.items():
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_text(completion.script(shell))
    (folder / "bin").mkdir()
    (folder / "bin" / "qwq").touch(0o755)  # fish completes only commands that exist
    (folder / "prompt.txt").touch()
    (folder / "models").mkdir()
    return folder


@pytest.mark.parametrize("shell", completion.SHELLS)
@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("qwq gen", ["generate"], ["golden"]),
        ("qwq ", list(COMMANDS), []),
        ("qwq plot ", ["attention", "residual", "lens"], ["generate"]),
        ("qwq golden ", ["record", "compare", "list"], ["generate"]),
        ("qwq generate --temp", ["--temp"], ["--top-k", "--temperature"]),
        ("qwq generate --no", [], ["--no-display-prompt"]),
        ("qwq generate --weights ", ["fp32", "bf16", "q8", "q4", "file"], ["qwq-nano"]),
        ("qwq bench --weights ", ["q4", "file"], ["qwq-nano"]),
        ("qwq generate -m qwq", ["qwq-nano", "qwq-nano-base"], ["prompt.txt"]),
        ("qwq info -m mod", ["models"], ["qwq-nano"]),
        ("qwq generate -f pro", ["prompt.txt"], ["models"]),
        ("qwq convert -o mod", ["models"], []),
        ("qwq golden compare g", ["gqa"], ["tied"]),
        ("qwq train c", ["cold-start"], ["base"]),
        ("qwq completion ", ["bash", "zsh", "fish"], []),
    ],
)
def test_a_shell_completes(shell, line, wanted, unwanted, scripts):
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed: install it to test its completion")
    done = subprocess.run(
        [found, *SHELLS[shell][1:]],
        cwd=scripts,
        env={"PATH": f"{scripts}/bin:/usr/bin:/bin", "HOME": str(scripts), "LINE": line},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = {word.rstrip("/ ") for word in done.stdout.split("\n")}
    assert set(wanted) <= found, (found, done.stderr)
    assert not found & set(unwanted)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_option_of_every_command_is_in_the_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for leaf in parser.build(COMMANDS).leaves():
        for action in leaf._get_optional_actions():
            if action.help != "==SUPPRESS==":
                assert action.option_strings[-1].lstrip("-") in script


def test_the_scripts_lie_where_the_page_says():
    page = (DOCS / "install.md").read_text()
    for shell, place in PLACES.items():
        assert f"qwq completion {shell} > ~/{place}" in page


def test_an_unknown_shell(capsys):
    assert main(["completion", "zhs"]) == 2
    assert capsys.readouterr().err == "qwq: shell: must be one of bash, zsh, fish, got zhs (did you mean zsh?)\n"
    assert main(["completion"]) == 2
    assert "required: {bash,zsh,fish}" in capsys.readouterr().err
