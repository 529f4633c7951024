"""Sentence embeddings by a BERT encoder whose matrix products run in int8.

    python examples/sentence_embeddings.py                          # built-in sentences
    python examples/sentence_embeddings.py "One sentence." "Another one."
    python examples/sentence_embeddings.py --file lines.txt --neighbours 5
    python examples/sentence_embeddings.py --compare                # against f32 and bf16 JAX

The model is all-MiniLM-L6-v2 (6 layers, 22.7 M parameters), in Flax nnx, quantized with one call.
"""

import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import app, flags
from flax import nnx

import compare
import jax_qgemm
import minilm
from bert import SentenceEncoder
from jax_qgemm.flax.nnx import quantize_

_FILE = flags.DEFINE_string("file", None, "Read sentences from this file, one a line.")
_NEIGHBOURS = flags.DEFINE_integer("neighbours", 2, "Nearest neighbours to print.", lower_bound=0)
_REPORT = flags.DEFINE_bool("report", False, "Print what quantize_ did to every layer.")
_COMPARE = flags.DEFINE_bool(
    "compare", False, "Compare accuracy and time with plain jitted f32 and bf16 JAX."
)

SENTENCES = (
    "A man is playing the guitar on stage.",
    "Someone strums a guitar in front of an audience.",
    "The orchestra tuned their instruments before the concert.",
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "Stock prices fell sharply after the announcement.",
    "Markets tumbled when the news came out.",
    "The central bank raised interest rates by a quarter point.",
    "How do I reset my password?",
    "I forgot my login and cannot get into my account.",
    "The telescope captured light from a distant galaxy.",
    "Astronomers photographed stars billions of light years away.",
    "Simmer the tomatoes with garlic and basil for twenty minutes.",
    "This recipe makes a rich pasta sauce.",
)
MAX_BATCH = 32
MAX_TABLE = 20  # a wider similarity table would not fit a terminal

Encode = Callable[[np.ndarray, np.ndarray], jax.Array]


def jit_encoder(model: SentenceEncoder) -> Encode:
    """`model` as a jitted function of (ids, mask).

    The module is split once: `nnx.jit(model)` would split it and copy its state at every call.
    """
    graph, state = nnx.split(model)
    encode = jax.jit(lambda state, ids, mask: nnx.merge(graph, state)(ids, mask))
    return lambda ids, mask: encode(state, ids, mask)


def embed(encode: Encode, tokenize: minilm.Tokenizer, sentences: Sequence[str]) -> np.ndarray:
    """Unit vectors, f32 (sentences, hidden), computed in batches of sentences of like length."""
    ids = [tokenize([sentence]) for sentence in sentences]
    lengths = np.array([row.shape[1] for row, _ in ids], int)
    vectors: dict[int, np.ndarray] = {}
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        # Full batches, so that a length compiles once: the last one repeats its first sentence.
        batch = min(len(rows), MAX_BATCH)
        for start in range(0, len(rows), batch):
            chunk = rows[start : start + batch]
            padded = np.resize(chunk, batch)
            out = encode(*(np.concatenate([ids[row][part] for row in padded]) for part in (0, 1)))
            vectors |= dict(zip(chunk, np.asarray(out), strict=False))
    return np.stack([vectors[row] for row in range(len(sentences))])


def similarity_table(similarity: np.ndarray) -> str:
    """Cosines as text, one row and column a sentence, numbered from 1."""
    numbers = range(1, len(similarity) + 1)
    lines = [" " * 4 + "".join(f"{n:>6}" for n in numbers)]
    for n, row in zip(numbers, similarity.round(2) + 0.0, strict=True):  # + 0.0: no "-0.00"
        lines.append(f"{n:>4}" + "".join(f"{value:6.2f}" for value in row))
    return "\n".join(lines)


def neighbour_list(sentences: Sequence[str], similarity: np.ndarray, count: int) -> str:
    """Each sentence with its `count` nearest others."""
    lines = []
    for n, sentence in enumerate(sentences):
        lines.append(f"{n + 1:>4}  {sentence}")
        nearest = [other for other in np.argsort(-similarity[n]) if other != n][:count]
        lines += [f"      {similarity[n, other]:5.2f}  {sentences[other]}" for other in nearest]
    return "\n".join(lines)


def read_sentences(arguments: Sequence[str], file: str | None) -> list[str]:
    """The sentences of the command line and of `file`, else the built-in ones.

    Raises OSError, or ValueError for a file that is not UTF-8 or holds no sentence.
    """
    sentences = list(arguments)
    if file is not None:
        try:
            lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--file: {file} is not UTF-8 text: {error.reason}") from error
        told = [line.strip() for line in lines if line.strip()]
        if not told:
            raise ValueError(f"--file: {file} holds no sentence, expected one a line")
        sentences += told
    return sentences or list(SENTENCES)


def main(argv: Sequence[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # also where there is a GPU: CPUs are the subject
    try:
        sentences = read_sentences(argv[1:], _FILE.value)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    try:
        tokenize, model = minilm.Tokenizer(), minilm.load_model()
    except (ModuleNotFoundError, OSError) as error:
        sys.exit(str(error))
    plain = nnx.clone(model) if _COMPARE.value else None

    report = quantize_(model, "int8")
    encode = jit_encoder(model)
    print(report if _REPORT.value else report.summary())

    start = time.perf_counter()
    vectors = embed(encode, tokenize, sentences)
    first = time.perf_counter() - start
    start = time.perf_counter()
    vectors = embed(encode, tokenize, sentences)
    again = time.perf_counter() - start
    print(
        f"{len(sentences)} sentences → {vectors.shape[1]} numbers each, "
        f"in {again * 1e3:.1f} ms (compiling took {first - again:.1f} s) "
        f"on {jax_qgemm.cpu_info()['isa_selected']}"
    )

    similarity = vectors @ vectors.T
    if len(sentences) <= MAX_TABLE:
        print(f"\nCosine similarity\n{similarity_table(similarity)}")
    neighbours = min(_NEIGHBOURS.value, len(sentences) - 1)
    print(f"\nNearest neighbours\n{neighbour_list(sentences, similarity, neighbours)}")

    if plain is not None:
        encoders = {
            "f32 JAX": jit_encoder(plain),
            "bf16 JAX": jit_encoder(compare.to_bfloat16(plain)),
            "int8 jax_qgemm": encode,
        }
        print("\n" + compare.accuracy(encoders, lambda e: embed(e, tokenize, sentences)))
        print("\n" + compare.speed(encoders))


if __name__ == "__main__":
    app.run(main)
