"""The grammar of the command line: spellings, order, and errors that name what was typed."""

import argparse
import re
import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwq_ref.cli import COMMANDS, main, parser
from qwq_ref.cli.spellings import ALIASES, FOREIGN, NEUTRAL
from qwq_ref.errors import UsageError
from tests.support.paths import DOCS

FOREIGN_NAMES = [name for names in FOREIGN.values() for name in names.split()]


def parsed(line):
    """What a line means: its options without those that tell how they were typed."""
    options = argparse.Namespace()
    parser.parse(shlex.split(line) if isinstance(line, str) else line, options)
    return {name: value for name, value in vars(options).items() if name not in ("flags", "typed")}


def leaves():
    return [leaf for command in parser.build(COMMANDS).actions().values() for leaf in command.leaves()]


@pytest.mark.parametrize(
    ("typed", "meaning"),
    [
        ("generate hi --temperature 0.5", "generate hi --temp 0.5"),
        ("generate hi --temperature=.5", "generate hi --temp 0.5"),
        ("generate hi --n-predict 5", "generate hi -n 5"),
        ("generate hi --n_predict=5", "generate hi --max-tokens 5"),
        ("generate hi --predict 5", "generate hi -n5"),
        ("generate hi --max_new_tokens 5", "generate hi -n 5"),
        ("generate hi --top_k 5 --top_p 0.5 --min_p 0.1", "generate hi --top-k 5 --top-p 0.5 --min-p 0.1"),
        ("generate hi --repetition_penalty 1.1", "generate hi --repeat-penalty 1.1"),
        ("generate hi --presence_penalty -1e-3", "generate hi --presence-penalty=-0.001"),
        ("generate hi -s 7", "generate hi --seed 7"),
        ("generate hi --seed -1", "generate hi"),
        ("generate hi -n -1 -c 0 --reasoning-budget -1", "generate hi"),
        ("generate hi -c 8K", "generate hi --ctx-size 8192"),
        ("generate hi -c 128k", "generate hi --ctx_size 131072"),
        ("generate hi -sys 'Be brief.'", "generate hi --system 'Be brief.'"),
        ("generate hi --system-prompt 'Be brief.'", "generate hi --system 'Be brief.'"),
        ("generate hi -hf Qwen/QwQ-32B", "generate hi -m Qwen/QwQ-32B"),
        ("generate hi --hf-repo Qwen/QwQ-32B", "generate hi --model Qwen/QwQ-32B"),
        ("generate hi -no-cnv", "generate hi --raw"),
        ("generate hi --ignore-chat-template", "generate hi --raw"),
        ("generate hi --reasoning-budget 5", "generate hi --think-budget 5"),
        ("generate hi --samplers 'penalties;top-k;top_p'", "generate hi --samplers penalties,top_k,top_p"),
        ("generate hi --samplers 'top_n_sigma;typ_p;temp'", "generate hi --samplers top-n-sigma,typical_p,temperature"),
        ("generate hi --samplers 'typical;nucleus'", "generate hi --samplers typical_p,top_p"),
        ("generate hi --typical 0.5 --top-nsigma 1", "generate hi --typical-p 0.5 --top-n-sigma 1"),
        ("generate hi --top-nsigma -1 --repeat-last-n -1", "generate hi"),
        ("generate hi -l 5+1 -l 6-0.5 -l 7-inf", "generate hi --logit-bias 5=1 --logit-bias=6=-.5 --logit-bias 7=-inf"),
        ("generate hi -r A --reverse-prompt B", "generate hi --stop A --stop_strings B"),
        ("generate hi --loop-guard off", "generate hi --loop-guard=off"),
        ("generate -n 5 hi", "generate hi -n 5"),
        ("generate -- hi", "generate hi"),
        ("generate -vn5 hi", "generate hi -n 5 --verbose"),
        ("-v generate hi", "generate -v hi"),
        ("-m qwq-nano-base -n 5 generate hi", "generate hi -m qwq-nano-base -n 5"),
        ("-v golden list", "golden list -v"),
        ("golden -v list", "golden list -v"),
        ("-o x golden --ids 1 record", "golden record -o x --ids 1"),
        ("bench --repetitions 3 --n_prompt 1,2 --json", "bench -r 3 -p 1,2 -o json"),
        ("perplexity --kl-divergence-base x --chunks -1", "perplexity --kl-base x"),
        ("perplexity --save_all_logits x", "perplexity --kl-base=x"),
        ("eval --tasks add3 --limit 5", "eval --categories add3 -n 5"),
        ("eval --suite humaneval -k 2 -o x", "eval --suite=humaneval --samples 2 --out x"),
        ("eval --suite x.jsonl --thinking-budget 0,64", "eval --suite x.jsonl --think-budget 0,64"),
        ("eval --suite generated --lean x.json -n 5", "eval --lean=x.json --limit 5 --suite=generated"),
        ("plot budget a b -o x.svg", "plot budget a b --out=x.svg"),
        ("convert --hf-path a --mlx-path b", "convert -m a -o b"),
        ("eval --ray=local --limit 5", "eval -n 5 --ray local"),
        ("--ray local generate hi --stages=2 --watts 65", "generate hi --watts=65 --stages 2 --ray=local"),
        ("bench --op", "bench --op ''"),
        ("bench --op matmul -T 4", "bench --op=matmul --tokens 4"),
        ("info -c 4K -c 8192", "info --ctx-size 4096 --ctx-size 8192"),
    ],
)
def test_two_spellings_mean_the_same(typed, meaning):
    assert parsed(typed) == parsed(meaning)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (["generate", "-5 + 7 = ?"], "positional", "-5 + 7 = ?"),
        (["generate", "-1e-3"], "positional", "-1e-3"),
        (["generate", "-"], "positional", "-"),
        (["generate", "--", "-n"], "positional", "-n"),
        (["generate", "-p", "-5"], "prompt", "-5"),
        (["generate", "-p", "-that is it"], "prompt", "-that is it"),
        (["generate", "-p", "--odd"], "prompt", "--odd"),
        (["generate", "-p=-n"], "prompt", "-n"),
        (["generate", "-pWhat is = here?"], "prompt", "What is = here?"),
        (["generate", "-p", "a=b"], "prompt", "a=b"),
        (["generate", "-p", ""], "prompt", ""),
        (["golden", "record", "-o", "x", "--layers", "-1,0"], "layers", [-1, 0]),
        (["generate", "hi", "-ngl", "0"], "gpu_layers", "0"),
    ],
)
def test_a_value_may_look_odd(line, name, value):
    assert parsed(line)[name] == value


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("genrate hi", "genrate: is not a command (did you mean generate?)"),
        ("run hi", "run: is not a command; there are generate, chat, batch, info, "),
        ("'What is 2+2?'", "What is 2+2?: is not a command: qwq generate answers a prompt"),
        ("golden cmpare", "cmpare: is not an action of qwq golden (did you mean compare?)"),
        ("-v", "the following arguments are required: COMMAND (see qwq --help)"),
        ("-p hi", "the following arguments are required: COMMAND (see qwq --help)"),
        ("--temp 1 golden", "the following arguments are required: ACTION (see qwq golden --help)"),
        ("--temp 1 golden compare gqa x", "--temp: is not an option of qwq golden compare"),
        ("generate --tempreture 1 hi", "--tempreture: is not an option of qwq generate (did you mean --temperature?)"),
        ("generate --temp=", "--temp: must be a number, got nothing"),
        ("generate --max 5", "--max: is not an option of qwq generate (did you mean --max-tokens"),
        ("generate --Seed 5", "--Seed: is not an option of qwq generate (did you mean --seed?)"),
        ("generate -T 5", "-T: is not an option of qwq generate (did you mean -t?)"),
        ("generate hi -m ''", "-m/--model: is empty"),
        ("generate hi --hf-repo ''", "--hf-repo: is empty"),
        ("generate -f ''", "-f/--file: is empty"),
        ("generate ''", "prompt: is empty"),
        ("generate -p ''", "-p/--prompt: is empty"),
        ("info -m ''", "-m/--model: is empty"),
        ("info ''", "MODEL: is empty"),
        ("doctor -m ''", "-m/--model: is empty"),
        ("convert -o ''", "-o/--out: is empty"),
        ("convert ''", "FOLDER: is empty"),
        ("train base -o ''", "-o/--out: is empty"),
        ("bench --shape=", "--shape: is empty"),
        ("eval --categories ''", "--categories: is empty"),
        ("eval --categories train", "--categories: there is no 'train' (did you mean trained?); there are addsub2, "),
        ("generate -x", "-x: is not an option of qwq generate (see qwq generate --help)"),
        ("generate -nx 5", "-nx: is not an option of qwq generate"),
        ("generate -ngx 5", "-ngx: is not an option of qwq generate (did you mean -ngl?)"),
        ("generate -n5x", "-n/--max-tokens: must be an integer, got 5x"),
        ("generate -n", "-n/--max-tokens: needs a value"),
        ("generate -n --json", "-n/--max-tokens: needs a value, got --json"),
        ("generate -n -c4096", "-n/--max-tokens: needs a value, got -c4096"),
        ("generate --n-predict", "--n-predict: needs a value"),
        ("generate --json=yes", "--json: takes no value, got yes"),
        ("generate --n_predict 0", "--n_predict: must be at least 1, got 0"),
        ("generate -n 0", "-n/--max-tokens: must be at least 1, got 0"),
        ("generate -n 1e3", "-n/--max-tokens: must be an integer, got 1e3"),
        ("generate -c 1.5K", "-c/--ctx-size: must be an integer, got 1.5K"),
        ("generate -c 4KiB", "-c/--ctx-size: must be an integer, got 4KiB"),
        ("generate -c 0K", "-c/--ctx-size: must be at least 1, got 0"),
        ("generate --temp 0,7", "--temp: must be a number, got 0,7"),
        ("generate --temp 1_0", "--temp: must be a number, got 1_0"),
        ("generate --temp ' 1'", "--temp: must be a number, got  1"),
        ("generate --top-p 1e999", "--top-p: must be a number, got 1e999"),
        ("generate -s 'Be brief.'", "-s/--seed: must be an integer, got Be brief."),
        ("generate -ngl 99", "-ngl/--n-gpu-layers: must be 0 or auto, got 99: everything runs on the CPU"),
        ("generate --gpu_layers all", "--gpu_layers: must be 0 or auto, got all: everything runs on the CPU"),
        ("info -ngl 0", "-ngl: has no counterpart: everything runs on the CPU"),
        ("generate -cnv", "-cnv: has no counterpart: `qwq chat` holds a conversation"),
        ("generate --cache_type_k q8_0", "--cache_type_k: has no counterpart: keys and values have one form, --kv "),
        ("generate --kv-bits=8", "--kv-bits: has no counterpart: keys and values have one form, --kv fp32 or "),
        ("info --kv-bits 8", "--kv-bits: is not an option of qwq info (see qwq info --help)"),
        ("generate -fa on", "-fa: has no counterpart: there is one way to compute attention"),
        ("generate -tb 4", "-tb: has no counterpart: --threads sets one number of threads for everything"),
        ("generate hi --version", "--version: stands alone: qwq --version"),
        ("generate what is this", "is: is one word too many: put quotes around a prompt of several words"),
        ("doctor qwq-nano", "qwq-nano: is one word too many: give a model with -m"),
        ("golden list gqa", "gqa: is one word too many (see qwq golden list --help)"),
        ("convert a b", "b: is one word too many: give a model with -m"),
        ("convert", "folder: is missing: name the new folder with -o"),
        ("convert a -o b", "-o/--out: is given twice, with the option and without"),
        ("info qwq-nano --model qwq-nano", "--model: is given twice, with the option and without"),
        ("generate hi -p there", "-p/--prompt: is given twice, with the option and without"),
        ("generate - -f -", "-f/--file: - is standard input, which is the prompt already"),
        ("generate --raw hi --chat-template-file x", "--chat-template-file: has no effect with --raw"),
        ("generate --raw hi --system-prompt x", "--raw: takes a plain text"),
        (
            "generate hi --samplers heat",
            "--samplers: must be some of penalties, temperature, top_n_sigma, top_k, top_p, ",
        ),
        ("generate hi --repeat-last-n 0", "--repeat-last-n: must be at least 1, got 0"),
        ("generate hi --logit-bias 5", "--logit-bias: must be ID=X, such as 15043=-1.5, got 5"),
        ("generate hi -l 5=x", "-l/--logit-bias: must be ID=X, such as 15043=-1.5, got 5=x"),
        ("generate hi -l 5+inf", "-l/--logit-bias: must be a number, got +inf"),
        ("generate hi -l 100000=1", "-l/--logit-bias: must name ids of tokens, below 512, got 100000"),
        ("generate hi --loop-guard 1", "--loop-guard: must be at least 2, got 1"),
        ("generate hi --loop-guard on", "--loop-guard: must be an integer, got on"),
        ("generate hi --logprobs 3", "--logprobs: needs --json"),
        ("generate hi --json --logprobs 21", "--logprobs: must be at most 20, got 21"),
        ("generate hi -r ''", "-r/--stop: is empty"),
        (f"generate hi --reverse-prompt {'x' * 1001}", "--reverse-prompt: must be texts of 1 to 1000 characters, got "),
        ("generate hi --reasoning-effort hgh", "--reasoning-effort: must be one of none, minimal, low, medium, high, "),
        (
            "generate hi --reasoning-effort low --think-budget 5",
            "--reasoning-effort: cannot be combined with a think budget",
        ),
        ("generate hi --repetition-penalty 0", "--repetition-penalty: must be above 0 and finite, got 0.0"),
        ("generate hi --repeat-penalty 0", "--repeat-penalty: must be above 0 and finite, got 0.0"),
        ("generate hi -c 5000", "-c/--ctx-size: must be 1 to 1024"),
        ("generate hi --ctx_size 5000", "--ctx_size: must be 1 to 1024"),
        ("generate hi -n 5000", "prompt: of 18 tokens and 5000 more do not fit"),
        ("generate -p hi -n 5000", "-p/--prompt: of 18 tokens and 5000 more do not fit"),
        ("train cold-start -o x", "--model: names the model to start from"),
        ("train base -o x -m y", "-m/--model: names the model to start from"),
        ("train bass -o x", "stage: must be one of base, cold-start, control, rl, got bass (did you mean base?)"),
        ("bench --op matmull", "--op: matmull does not exist (did you mean matmul-q4?); there are "),
        ("bench -T 4", "-T/--tokens: needs --op"),
        ("bench --op argmax --weights q8", "--weights: has no effect with --op"),
        ("bench --op argmax -n 5", "-n/--n-gen: has no effect with --op"),
        ("eval --categories ad3", "--categories: there is no 'ad3' (did you mean add3?); there are addsub2, "),
        ("eval --suite humanevil", "--suite: there is no 'humanevil' (did you mean humaneval?)"),
        ("eval --samples 2", "--samples: needs --suite"),
        ("eval --lean x.json", "--lean: needs --suite"),
        ("eval --suite ifeval --lean x.json", "--lean: has no effect on the suite ifeval"),
        ("eval --suite generated --data x.json", "--data: has no effect on the suite generated"),
        ("eval --tasks ad3", "--tasks: there is no 'ad3' (did you mean add3?)"),
        ("eval --against q4+int", "--against: must be one of fp32, int8, got int (did you mean int8?)"),
    ],
)
def test_an_error_names_what_was_typed(line, problem, capsys):
    assert main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"qwq: {problem}")


@pytest.mark.parametrize("name", FOREIGN_NAMES)
@pytest.mark.parametrize("command", ["generate", "info"])
def test_an_option_of_another_program_is_never_taken_for_another(command, name):
    """-mg is not -m g, and -ctk q8_0 is not -c tk."""
    own = parser.build([command]).actions()[command]
    if own._action(name) is not None:
        return
    with pytest.raises(UsageError) as caught:
        parsed([command, name, "x"])
    assert caught.value.field == name
    assert caught.value.problem.startswith(("has no counterpart: ", "is not an option of "))


def test_the_lists_of_spellings_agree_with_the_options():
    options = {name for leaf in leaves() for name in leaf._option_string_actions}
    aliases = [alias for names in ALIASES.values() for alias in names]
    assert set(ALIASES) <= options
    assert not options & set(aliases), "an alias of one option is the name of another"
    for name in FOREIGN_NAMES:
        assert parser.Parser._action(parser.build(["generate"]).actions()["generate"], name) is None or name in (
            "-ngl",
            "--gpu-layers",
            "--n-gpu-layers",
        )
    everything = [*aliases, *FOREIGN_NAMES, *NEUTRAL]
    assert len(set(everything)) == len(everything)


def test_the_page_lists_every_spelling():
    page = (DOCS / "command-line.md").read_text()
    code = set(re.findall(r"`([^`\n]+)`", page.replace("```", "")))
    underscored = {"--max-new-tokens", "--repetition-penalty"}  # listed as arguments of transformers
    aliases = {alias for names in ALIASES.values() for alias in names} - underscored
    assert {*ALIASES, *aliases, *FOREIGN_NAMES, *NEUTRAL} <= code
    rows = dict(re.findall(r"^\| (`-.*`) \| (.*) \|$", page.partition("no counterpart")[2], re.MULTILINE))
    assert {", ".join(f"`{name}`" for name in names.split()) for names in FOREIGN.values()} == set(rows)
    assert {says.replace("`", "") for says in rows.values()} == {says.replace("`", "") for says in FOREIGN}


def test_every_long_option_has_its_long_name_last():
    """Errors show it, and words are spelled out with it."""
    for leaf in leaves():
        for action in leaf._get_optional_actions():
            assert action.option_strings[-1].startswith("--"), (leaf.prog, action.option_strings)


def test_an_option_means_the_same_in_every_command():
    """One letter may differ: -n, -p, -o and -r of `bench` are those of llama-bench, -n of `eval` counts problems."""
    meanings = {}
    for leaf in leaves():
        for action in leaf._get_optional_actions():
            for name in action.option_strings:
                meanings.setdefault(name, set()).add(action.option_strings[-1])
    several = {name for name, long in meanings.items() if len(long) > 1}
    assert several == {"-n", "-p", "-o", "-r"}
    models = {leaf.prog for leaf in leaves() if leaf._action("-m") and leaf._action("-m") is leaf._action("--model")}
    assert models == {
        *("qwq generate", "qwq chat", "qwq info", "qwq convert", "qwq eval", "qwq golden record", "qwq golden compare"),
        *("qwq train", "qwq doctor", "qwq bench", "qwq perplexity", "qwq tokenize", "qwq serve", "qwq batch"),
        *("qwq plot attention", "qwq plot residual", "qwq plot lens"),
    }


def test_help(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: qwq")
    assert "golden" in err

    def helps(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return out

    top, generate, compare = helps("--help"), helps("generate", "--help"), helps("golden", "compare", "-h")
    assert top == helps("help") == helps("-h") == helps("help", "help")
    assert generate == helps("help", "generate") == helps("-h", "generate") == helps("generate", "-x", "hi", "-h")
    assert compare == helps("help", "golden", "compare") == helps("golden", "-h", "compare")
    assert helps("-V") == helps("--version") == helps("--version", "generate")
    assert main(["help", "nothing"]) == 2
    assert "nothing: is not a command" in capsys.readouterr().err


WORDS = st.one_of(
    st.sampled_from(
        [*COMMANDS, "help", "list", "record", "compare", "-", "--", "--=", "-=", "---", "-1", "x", "", "5"]
    ),
    st.sampled_from(
        ["-n", "-n5", "-vn", "--temp=", "--temp", "-m", "-m=", "--json", "-v", "--op", "-ngl", "-o", "-fa"]
    ),
    st.sampled_from(["--max_tokens", "--ids=1,-2", "--size", "--n-predict=3", "-c4K", "-hv", "--no-cnv", "-T", "-é"]),
    st.text(max_size=6),
    st.text(max_size=4).map("-{}".format),
    st.text(max_size=6).map("--{}".format),
)


@given(st.lists(WORDS, max_size=6))
@example(["generate", "hi", "--", "--"])
def test_any_words_are_parsed_or_refused_in_one_line(words):
    words = [word for word in words if word not in ("-h", "--help", "-V", "--version", "-hv", "help")]
    try:
        options = argparse.Namespace()
        parser.parse(words, options)
    except UsageError as error:
        problem = str(error)
    else:
        problem = ""
        assert options.command in COMMANDS
        assert set(options.typed) <= set(options.flags)
    assert "\n" not in problem
