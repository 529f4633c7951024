"""Sizes around the edges of the tiles, and covering sets of combinations."""

import itertools

import numpy as np

M = tuple(range(1, 14))
N = K = (1, 3, 4, 15, 16, 17, 63, 64, 65, 127, 128, 129, 800, 1000)


def pairwise(seed=0, **factors):
    """Cases (dicts) in which every pair of values of any two factors occurs at least once."""
    rng = np.random.default_rng(seed)
    names = list(factors)
    sizes = [len(factors[n]) for n in names]

    def pairs(case):
        return {(i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(names)), 2)}

    missing = {
        (i, a, j, b)
        for i, j in itertools.combinations(range(len(names)), 2)
        for a in range(sizes[i])
        for b in range(sizes[j])
    }
    cases = []
    while missing:
        i, a, j, b = min(missing)
        trials = [[int(rng.integers(s)) for s in sizes] for _ in range(40)]
        for t in trials:
            t[i], t[j] = a, b
        best = max(trials, key=lambda t: len(pairs(t) & missing))
        missing -= pairs(best)
        cases.append({n: factors[n][v] for n, v in zip(names, best, strict=True)})
    return cases


# Formats whose arrays have the same shapes and dtypes, of a weight of 64 × 16.
SAME_ARRAYS = [
    ("fp16", "bf16"),
    ("int4:32:fp16", "int4:32:bf16"),
    ("int4:32:fp16", "int4:64:fp32"),
]
