"""Kinds of files that the package reads, for `mutants`: how one is read, and what its answer must then be.

Every kind reads a mutant by the package's own public way. The answer is then compared with another reader's: the
libraries transformers, tokenizers and safetensors, or the values in the file.
"""

import functools
import importlib.util
import json
import logging
from xml.etree import ElementTree

import numpy as np

import qwq_ref
from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.engine.convert import convert
from qwq_ref.engine.reading import read_model
from qwq_ref.errors import GoldenError
from qwq_ref.formats import Checkpoint, GenerationConfig, open_source
from qwq_ref.oracle import Golden, compare, record
from qwq_ref.oracle.graph import phases_of
from qwq_ref.text import load_chat_template, load_tokenizer
from tests.support import gguf_models, mutants, packs, quantised_models
from tests.support.checkpoints import write_checkpoint
from tests.support.gguf_models import peer_config
from tests.support.models import config_values, random_weights, yarn
from tests.support.packed_matrices import packed_matrices
from tests.support.paths import QWQ_CONFIG
from tests.support.safetensors_files import INDEX, WEIGHTS, split, weights_file, write
from tests.support.small_tokenizer import SENTENCES, SIZE, TEMPLATE, VALUES

IDS = [3, 1, 4]
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "<think>\nTwo and three.\n</think>\n\n5"},
    {"role": "user", "content": "日本語で <|im_end|> \n"},
]


class Kind:
    """A folder of sound files, and the ways to change and to read them.

    folder  the folder; `files` are the names of those in it that are changed
    sound   the answer of the sound files
    """

    files: tuple[str, ...] = ()
    mutate = staticmethod(mutants.of_json)

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        self.sound_bytes = {name: (self.folder / name).read_bytes() for name in self.files}
        self.sound = self.read()

    def originals(self, name):
        """Return the sound contents that a file of this name may start from."""
        return [self.sound_bytes[name]]

    def put(self, rng):
        """Write one mutant -> (the name of its file, its contents)."""
        name = rng.choice(self.files)
        data = self.mutate(rng.choice(self.originals(name)), rng)
        (self.folder / name).write_bytes(data)
        return name, data

    def restore(self, name):
        (self.folder / name).write_bytes(self.sound_bytes[name])


def same_arrays(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
        assert value.tobytes() == np.asarray(theirs[name], np.float32).tobytes(), name


# --- JSON ---


@functools.cache
def hugging_face():
    """Return Qwen2Config of transformers, without its warnings."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    return transformers.Qwen2Config


class ConfigKind(Kind):
    files = ("config.json",)

    def prepare(self):
        (self.folder / "config.json").write_text(json.dumps(config_values()))

    def originals(self, name):
        newer = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "layer_types": ["full_attention"] * 2}
        newer |= {"rope_theta": None, "dtype": "bfloat16", "sliding_window": None, "use_sliding_window": False}
        values = [
            config_values(rope_scaling=yarn(type="yarn")),
            config_values(use_sliding_window=True, sliding_window=3, max_window_layers=1),
            config_values(**newer),
            config_values(**newer | {"rope_parameters": {"full_attention": yarn(rope_theta=1e6)}}),
            config_values(**newer | {"rope_scaling": yarn()}),
        ]
        return [QWQ_CONFIG.read_bytes(), *(json.dumps(each).encode() for each in values)]

    def read(self):
        return Config.from_file(self.folder / "config.json")

    def check(self, config, name, data):
        """Each field is that of the file, and RoPE and the windows are those of transformers."""
        values = json.loads(data.decode("utf-8-sig"))
        for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            assert getattr(config, field) == values[field], field
        assert config.rms_norm_eps == float(values["rms_norm_eps"])
        assert config.max_position_embeddings == values["max_position_embeddings"]
        assert config.tie_word_embeddings == (values.get("tie_word_embeddings") or False)
        heads = values["num_attention_heads"]
        assert config.num_key_value_heads == (values.get("num_key_value_heads") or heads)
        assert config.head_dim == (values.get("head_dim") or values["hidden_size"] // heads)
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        try:
            theirs = hugging_face()(**values)
        except Exception:  # it refuses what is read here, such as null
            return
        kinds = theirs.layer_types
        windows = [theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds]
        assert [config.window(layer) for layer in range(config.L)] == windows[: config.L]
        rope, both = theirs.rope_parameters, values.get("rope_scaling") and values.get("rope_parameters")
        if both or values.get("rope_theta", 0) is None or not isinstance(rope, dict) or rope.get("rope_type") is None:
            return  # these it reads in another way
        assert (config.rope.type, config.rope.theta) == (rope["rope_type"], float(rope["rope_theta"]))
        if config.rope.type == "yarn":
            assert config.rope.original_max_position_embeddings == rope["original_max_position_embeddings"]
            for field, default in (("factor", None), ("attention_factor", None), ("beta_fast", 32), ("beta_slow", 1)):
                given = rope.get(field, default)
                assert given is None or getattr(config.rope, field) == float(given), field


class GenerationKind(Kind):
    files = ("generation_config.json",)

    def prepare(self):
        values = config_values()
        self.config = Config.from_dict(values)
        (self.folder / "config.json").write_text(json.dumps(values))
        sampling = {"do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1}
        sampling |= {"eos_token_id": [5, 3], "bos_token_id": 3, "pad_token_id": 3, "transformers_version": "4.43.1"}
        (self.folder / "generation_config.json").write_text(json.dumps(sampling))

    def read(self):
        return GenerationConfig.from_folder(self.folder, self.config)

    def check(self, ours, name, data):
        values = json.loads(data.decode("utf-8-sig"))
        defaults = GenerationConfig()
        for field in ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            default, given = getattr(defaults, field), values.get(field)
            assert getattr(ours, field) == (default if given is None else type(default)(given)), field
        ends = values.get("eos_token_id")
        wanted = ends if isinstance(ends, list) else [0 if ends is None else ends]
        assert set(wanted) <= set(ours.eos_token_ids)


class TokenizerKind(Kind):
    files = ("tokenizer.json",)
    texts = (*SENTENCES, "<|im_start|>user\n 12 eggs<|im_end|>\n<think> </think>", "a\u0301\r\n\t \0 x")

    def prepare(self):
        (self.folder / "tokenizer.json").write_text(json.dumps(VALUES))

    def read(self):
        tokenizer = load_tokenizer(self.folder / "tokenizer.json", SIZE + 5)
        ids = [tokenizer.encode(text, special=True) for text in self.texts]
        return ids, [tokenizer.decode(each, skip_special=False) for each in ids], tokenizer.special

    def check(self, answer, name, data):
        """Ids and texts are those of the library, which numbers added tokens anew where the file leaves holes."""
        import tokenizers

        ids, texts, _ = answer
        values = json.loads(data.decode("utf-8-sig"))
        try:
            read = {name: values.get(name) for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
            theirs = tokenizers.Tokenizer.from_str(json.dumps(VALUES | read))
        except Exception:
            assert answer == self.sound
            return
        numbers = {entry["content"]: entry["id"] for entry in values["added_tokens"]}
        wanted = [theirs.encode(text, add_special_tokens=False) for text in self.texts]
        assert ids == [
            [numbers.get(token, number) for token, number in zip(each.tokens, each.ids, strict=True)] for each in wanted
        ]
        assert texts == [theirs.decode(each.ids, skip_special_tokens=False) for each in wanted]


class BesideKind(Kind):
    """The files beside tokenizer.json. Hugging Face numbers tokens anew, so the file itself is the reference."""

    files = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")

    def prepare(self):
        entries = VALUES["added_tokens"]
        (self.folder / "tokenizer.json").write_text(json.dumps({**VALUES, "added_tokens": entries[:-2]}))
        self.decoder = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in entries}
        self.named = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>", "special": True}}
        self.named |= {"bos_token": None, "additional_special_tokens": ["<|im_start|>", {"content": "<|im_end|>"}]}
        older = {entry["content"]: entry["id"] for entry in entries[-3:]}
        (self.folder / "tokenizer_config.json").write_text(json.dumps(self.named))
        (self.folder / "added_tokens.json").write_text(json.dumps(older))
        (self.folder / "special_tokens_map.json").write_text(json.dumps(self.named))

    def originals(self, name):
        newer = {**self.named, "added_tokens_decoder": self.decoder, "extra_special_tokens": {"x_token": "<think>"}}
        newer["chat_template"] = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
        return [self.sound_bytes[name], *([json.dumps(newer).encode()] if name == "tokenizer_config.json" else [])]

    def read(self):
        tokenizer, template = load_tokenizer(self.folder, SIZE + 5), load_chat_template(self.folder)
        return tokenizer, template and (template.source, template.variables)

    def check(self, answer, name, data):
        """Each token has the id that a file gives it, and text of it comes back."""
        values, given = json.loads(data.decode("utf-8-sig")), {}
        tokenizer, _ = answer
        if name == "added_tokens.json":
            given = values
        if name == "tokenizer_config.json":
            given = {entry["content"]: int(key) for key, entry in (values.get("added_tokens_decoder") or {}).items()}
        for token, identity in {**{e["content"]: e["id"] for e in VALUES["added_tokens"][:-2]}, **given}.items():
            assert tokenizer.added[token] == identity
            if token not in tokenizer.spellings:  # it is looked for in normalised text
                continue
            assert tokenizer.encode(f"a{token}", special=True)[-1] == identity or any(
                token in other for other in tokenizer.spellings if other != token
            )
        assert tokenizer.decode(tokenizer.encode(SENTENCES[0])) == SENTENCES[0]


class TemplateKind(Kind):
    files = ("chat_template.jinja",)
    mutate = staticmethod(mutants.of_template)

    def prepare(self):
        (self.folder / "chat_template.jinja").write_text(TEMPLATE)

    def read(self):
        return load_chat_template(self.folder).render(CHAT)

    def check(self, text, name, data):
        """The text is that of transformers, if it makes one."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            theirs = _compile_jinja_template(data.decode()).render(
                messages=CHAT, tools=None, add_generation_prompt=True
            )
        except Exception:
            return
        assert text == theirs


# --- tensors ---


class SafetensorsKind(Kind):
    files = ("model.safetensors",)
    mutate = staticmethod(mutants.of_safetensors)

    def prepare(self):
        write(self.folder, {"model.safetensors": weights_file(WEIGHTS)})

    def read(self):
        with Checkpoint.open(self.folder) as checkpoint:
            return dict(checkpoint)

    def check(self, ours, name, data):
        import safetensors.numpy

        try:
            theirs = safetensors.numpy.load(data)
        except Exception:  # it refuses what is read here
            theirs = self.sound
        same_arrays(
            ours, {name: theirs[name] if name in theirs else theirs[name.removeprefix("model.")] for name in ours}
        )


class IndexKind(Kind):
    files = (INDEX,)

    def prepare(self):
        shards, weight_map = split()
        write(self.folder, shards, weight_map)

    def read(self):
        with Checkpoint.open(self.folder) as checkpoint:
            return dict(checkpoint)

    def check(self, ours, name, data):
        same_arrays(ours, self.sound)


class PackedKind(Kind):
    """A folder that `qwq convert` made: a mutant of the weights is loaded, and computes."""

    files = ("packed-q4.safetensors", "packed-q8.safetensors")
    mutate = staticmethod(mutants.of_safetensors)

    def prepare(self):
        values = config_values(vocab_size=SIZE + 11)
        source = self.folder.with_name(f"{self.folder.name}-source")
        source.mkdir(exist_ok=True)
        write_checkpoint(source, values, random_weights(Config.from_dict(values), 7))
        (source / "tokenizer.json").unlink()
        (source / "chat_template.jinja").unlink()
        for form in ("q4", "q8"):
            convert(source, self.folder, form)
        self.form = "q4"
        self.wanted = {}
        for form in ("q4", "q8"):
            self.form = form
            self.wanted[form] = self.read()

    def put(self, rng):
        name, data = super().put(rng)
        self.form = name[len("packed-") :].partition(".")[0]
        return name, data

    def read(self):
        return qwq_ref.load(self.folder, weights=self.form, threads=1, context=8).logits(IDS)

    def check(self, logits, name, data):
        assert logits.shape == (len(IDS), SIZE + 11)
        end = 8 + int.from_bytes(data[:8], "little")
        sound = self.sound_bytes[name]
        if data[end:] == sound[8 + int.from_bytes(sound[:8], "little") :]:
            assert logits.tobytes() == self.wanted[self.form].tobytes()


class GGUFKind(Kind):
    """A GGUF file of many types: a mutant is read as floats, and packed as it is stored."""

    files = ("model.gguf",)
    mutate = staticmethod(mutants.of_gguf)

    def prepare(self):
        config = peer_config(num_hidden_layers=1, vocab_size=40, intermediate_size=256)
        kinds = gguf_models.mixture((*gguf_models.NATIVE_SUPER, *gguf_models.NATIVE))

        def metadata(writer):
            writer.add_token_list([f"t{i}" for i in range(40)])
            writer.add_token_types([1] * 40)
            writer.add_eos_token_id(5)
            writer.add_float32("general.sampling.temp", 0.6)

        gguf_models.write_types(self.folder / "model.gguf", config, kinds, metadata=metadata)

    def read(self):
        with open_source(self.folder / "model.gguf") as source:
            source.generation_config()
            found = dict(source.floats)
            if core.available():
                held = packed_matrices(source.config, read_model(source, source.kept.form, 1))
                for name, value in held.items():
                    assert name not in found or value.tobytes() == found[name].tobytes(), name
            return found

    def check(self, ours, name, data):
        """The tensors are those of the package, which reads less than this package does."""
        import gguf

        try:
            theirs = {each.name: each for each in gguf.GGUFReader(self.folder / "model.gguf").tensors}
        except Exception:  # it refuses what is read here
            return same_arrays(ours, self.sound)
        for own, value in ours.items():
            tensor = theirs[gguf_models.gguf_tensor_name(own)]
            with np.errstate(all="ignore"):
                wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert value.tobytes() == np.asarray(wanted, np.float32).tobytes(), own


class QuantisedKind(Kind):
    """Checkpoints of AWQ, GPTQ and MLX: a mutant of one is read as floats, and packed as it is stored."""

    files = tuple(
        f"{method}/{name}" for method in ("awq", "gptq", "mlx") for name in ("config.json", "model.safetensors")
    )

    def prepare(self):
        config = Config.from_dict(quantised_models.values_of(num_hidden_layers=1, vocab_size=32))
        gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True}
        settings = {"awq": quantised_models.CONFIG, "gptq": gptq, "mlx": {"bits": 3, "group_size": 32}}
        matrices = {
            "awq": quantised_models.awq_matrix,
            "gptq": functools.partial(quantised_models.gptq_matrix, order=quantised_models.shuffled),
            "mlx": functools.partial(quantised_models.mlx_matrix, group=32, bits=3, dtype=quantised_models.BF16),
        }
        self.method, self.wanted = "awq", {}
        for method, matrix in matrices.items():
            tensors, self.wanted[method] = quantised_models.model(config, matrix, seed=3)
            quantised_models.write(self.folder / method, config, tensors, settings[method])

    def put(self, rng):
        name, data = super().put(rng)
        self.method = name.partition("/")[0]
        return name, data

    def mutate(self, data, rng):
        return mutants.of_json(data, rng) if data.startswith(b"{") else mutants.of_safetensors(data, rng)

    def read(self):
        with open_source(self.folder / self.method) as source:
            found = dict(source.floats)
            if core.available() and source.kept is not None:
                held = packed_matrices(source.config, read_model(source, source.kept.form, 1))
                for name, value in held.items():
                    assert name not in found or value.tobytes() == found[name].tobytes(), name
            return found

    def check(self, ours, name, data):
        """A mutant whose tensors are those of the file has the values that they were made from."""
        wanted, sound = self.wanted[self.method], self.sound_bytes[f"{self.method}/model.safetensors"]
        if name.endswith(".safetensors"):
            end, old = (8 + int.from_bytes(each[:8], "little") for each in (data, sound))
            if data[end:] != sound[old:] or data[:end] != sound[:old]:
                return  # other numbers, or other names for them
        else:
            values, whole = (json.loads(each.decode("utf-8-sig")) for each in (data, self.sound_bytes[name]))
            if any(values.get(key) != whole.get(key) for key in ("quantization_config", "tie_word_embeddings")):
                return  # such as another version of GPTQ
        same_arrays(ours, wanted)


class GoldenKind(Kind):
    """A golden pack: a mutant gives a verdict on a correct candidate, or a GoldenError."""

    files = ("manifest.json", "manifest.json", "prompt.safetensors", "decode-0.safetensors")
    taps = ("lm_head", "*.q_rope", "*.scores", "*.resid_post")

    def prepare(self):
        self.pack = self.folder / "pack"
        if not self.pack.exists():
            record(packs.CONFIG, packs.WEIGHTS, self.pack, packs.IDS[:4], 1, layers=[0], taps=list(self.taps))
        self.candidate = packs.spec_run(packs.CONFIG, packs.WEIGHTS, phases_of(packs.IDS[:4], 1))
        self.folder = self.pack

    def mutate(self, data, rng):
        return mutants.of_json(data, rng) if data.startswith(b"{") else mutants.of_safetensors(data, rng)

    def read(self):
        with Golden.open(self.folder) as golden:
            report = compare(golden, self.candidate, model=packs.WEIGHTS, explain=False, coverage=False, verify=False)
            json.dumps(report.to_dict(), allow_nan=False)
            ElementTree.fromstring(report.junit())
            return str(report)

    def check(self, text, name, data):
        if name != "manifest.json" and data != self.sound_bytes[name]:
            try:
                with Golden.open(self.folder) as golden:
                    golden.verify()
            except GoldenError:
                return
            raise AssertionError("a changed file was not noticed")


KINDS = {
    "config": ConfigKind,
    "generation-config": GenerationKind,
    "tokenizer": TokenizerKind,
    "tokenizer-config": BesideKind,
    "template": TemplateKind,
    "safetensors": SafetensorsKind,
    "index": IndexKind,
    **({"gguf": GGUFKind} if importlib.util.find_spec("gguf") else {}),
    "quantised": QuantisedKind,
    "golden": GoldenKind,
} | ({"packed": PackedKind} if core.available() else {})
