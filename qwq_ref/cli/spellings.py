"""Spellings of options that users of other programs type: llama.cpp, mlx-lm and transformers.

An option of the same meaning is accepted under both names, in every command that has it. An option without a
counterpart is refused with a line that says so, and names the nearest option here. docs/command-line.md shows both.
"""

from __future__ import annotations

# The option here -> its other names. Help and completion show the option here alone.
ALIASES = {
    "--model": ("--model-name-or-path", "--hf-path", "--hf-repo", "-hf", "-hfr"),
    "--system": ("--system-prompt", "-sys"),
    "--raw": ("--ignore-chat-template", "--no-conversation", "-no-cnv"),
    "--max-tokens": ("--n-predict", "--predict", "--max-new-tokens"),
    "--temp": ("--temperature",),
    "--repeat-penalty": ("--repetition-penalty",),
    "--typical-p": ("--typical",),
    "--top-n-sigma": ("--top-nsigma",),
    "--logit-bias": ("-l",),
    "--stop": ("--reverse-prompt", "--stop-strings"),
    "--think-budget": ("--reasoning-budget", "--thinking-budget"),
    "--alias": ("--served-model-name", "-a"),
    "--out": ("--mlx-path",),
    "--repeats": ("--repetitions",),
    "--problems": ("--limit",),
    "--categories": ("--tasks",),
    "--json-schema": ("--json-schema-file", "-jf"),
    "--kl-base": ("--kl-divergence-base", "--save-all-logits"),
}

# Options that ask for what happens anyway. They take no value, and change nothing.
NEUTRAL = (
    *("--no-display-prompt", "--single-turn", "-st", "--jinja", "--no-escape", "--no-warmup", "--no-context-shift"),
    "--simple-io",
)

# Options without a counterpart: what to tell -> their names.
FOREIGN = {
    "keys and values have one form, --kv fp32 or --kv int8": (
        "--cache-type-k -ctk --cache-type-v -ctv --kv-bits --kv-group-size --quantized-kv-start"
    ),
    "--weights chooses fp32, bf16, q8, q4 or file": (
        "--dtype --torch-dtype --load-in-4bit --load-in-8bit --quantize -q --q-bits --outtype --q-group-size "
        "--quantize-activations -qa"
    ),
    "everything runs on the CPU": (
        "--n-gpu-layers --gpu-layers -ngl --device -dev --device-map --split-mode -sm --tensor-split -ts "
        "--main-gpu -mg --list-devices --override-tensor -ot --kv-offload -kvo --no-kv-offload -nkvo --fit -fit "
        "--fit-target -fitt --fit-ctx -fitc --cpu-moe -cmoe --n-cpu-moe -ncmoe"
    ),
    "--threads sets one number of threads for everything": (
        "--threads-batch -tb --cpu-mask -C --cpu-range -Cr --prio --poll --numa"
    ),
    "there is one way to load a model": (
        "--mmap --no-mmap --mlock --load-mode -lm --direct-io -dio --no-direct-io -ndio --repack --no-repack -nr "
        "--no-host --override-kv --swa-full --trust-remote-code"
    ),
    "the file or the type follows the id: --model ID/FILE.gguf or --model ID:TYPE": "--hf-file -hff",
    "--model takes a local file or folder, or an id of the Hugging Face hub": "--model-url -mu --docker-repo -dr",
    "models of text alone are read": "--mmproj -mm --mmproj-url -mmu",
    "the environment variable HF_TOKEN holds the token": "--hf-token -hft",
    "`qwq info --check` looks at every weight": "--check-tensors",
    "there is one way to compute attention": "--flash-attn -fa --attn-implementation",
    "batches have one size": "--batch-size -b --ubatch-size -ub --ctx-checkpoints -ctxcp",
    "RoPE is changed by --rope-scaling yarn, --rope-scale and --yarn-orig-ctx": (
        "--rope-freq-base --rope-freq-scale --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast"
    ),
    "the samplers are the steps of --samplers, each with its option": (
        "--xtc-probability --xtc-threshold --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n "
        "--dry-sequence-breaker --mirostat --mirostat-lr --mirostat-ent --dynatemp-range --dynatemp-exp "
        "--adaptive-target --adaptive-decay --sampler-seq --sampling-seq --min-tokens-to-keep "
        "--no-repeat-ngram-size --num-beams"
    ),
    "--temp 0 takes the likeliest token; any other temperature samples": "--do-sample --no-do-sample",
    "--max-tokens limits the output, --ctx-size the prompt and the output together": (
        "--max-length --max-kv-size --min-length --min-new-tokens --keep --ignore-eos --context-shift --cache-ram -cram"
    ),
    "--stop ends the answer at a text": "--extra-eos-token",
    "control tokens are never printed": "--special -sp",
    "--chat-template-file takes a Jinja template": (
        "--chat-template --chat-template-config --chat-template-kwargs --use-default-chat-template --no-jinja "
        "--prefill-response --skip-chat-parsing"
    ),
    "--think shows or hides the reasoning, and --think-budget limits it": (
        "--reasoning -rea --reasoning-format --reasoning-budget-message"
    ),
    "chunks do not overlap, and their second halves are scored": "--ppl-stride --ppl-output-type",
    "`qwq eval` asks a model problems": (
        "--hellaswag --hellaswag-tasks --winogrande --winogrande-tasks --multiple-choice --multiple-choice-tasks"
    ),
    "`qwq chat` holds a conversation": (
        "--conversation -cnv --interactive -i --interactive-first -mli --multiline-input"
    ),
    "each call answers one prompt": "--prompt-cache-file --server-base --host --port",
    "there is no second model that drafts tokens": (
        "--draft-model --model-draft -md --num-draft-tokens --draft --draft-max --draft-min --threads-draft -td "
        "--spec-type --spec-default"
    ),
    "merge the adapter into the model first": (
        "--lora --lora-scaled --adapter-path --control-vector --control-vector-scaled"
    ),
    '--system "$(cat FILE)" reads a file': "--system-prompt-file -sysf",
    "--file reads a prompt in UTF-8": "--binary-file -bf",
    "\\n stays as it is; --file reads a prompt of several lines": "--escape -e",
    "the prompt is never printed": "--display-prompt --verbose-prompt",
    "the environment variable NO_COLOR turns colours off": "--color -co --log-colors",
    "the answer is on stdout, so > FILE stores it": "--output-file --output",
    "messages go to stderr, so 2> FILE stores them": "--log-disable --log-file --log-verbosity --verbosity -lv",
}


def foreign(flag: str) -> str | None:
    """Return the problem of an option that other programs have and this one has not; None for an unknown name."""
    says = next((says for says, names in FOREIGN.items() if flag in names.split()), None)
    return None if says is None else f"has no counterpart: {says}"
