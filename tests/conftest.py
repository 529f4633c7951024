"""Shared by all tests: the oracle on the path, every instruction set in turn, comparisons."""

import os
import sys
import warnings
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

sys.path.insert(
    0, str(Path(__file__).parent)
)  # `import oracle`, `cases`, also under importlib mode

import fresh

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # the extension may be missing: test_native.py
    import jax_qgemm as jq

# XLA reads its flags once, for the first device: what processes that tests start compile is as
# users have it.
with pytest.MonkeyPatch.context() as patch:
    if "XLA_FLAGS" not in os.environ:
        patch.setenv("XLA_FLAGS", fresh.QUICKLY_COMPILED)
    jax.devices()

ISAS = jq.cpu_info()["isa_available"]
EXACT = bool(ISAS)  # native kernels are compared bit by bit, XLA's lowering within 2 ulp


def pytest_report_header():
    return f"jax_qgemm: {'native, ' + ', '.join(ISAS) if EXACT else 'no extension, XLA lowering'}"


def pytest_collection_modifyitems(items):
    # The longest file starts first, so that processes which share the files end together.
    items.sort(key=lambda item: item.path.name != "test_sharding.py")


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Modules share few programs, and thousands of them are gigabytes in each process."""
    yield
    jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def each_isa():
    """`for isa in each_isa(): …` runs the body with each instruction set forced in turn."""

    def loop():
        for isa in ISAS or ["xla"]:
            if isa == "xla":
                yield isa
            else:
                with jq.config.limit_isa(isa):
                    assert jq.cpu_info()["isa_selected"] == isa
                    yield isa

    return loop


@pytest.fixture(scope="session")
def assert_same():
    """got equals want: bitwise with the native kernels; else 2 ulp of `largest`, or one step.

    NaN equals NaN whatever its payload. `largest` bounds the terms that were added up.
    """

    def check(got, want, what="", largest=None, exact=EXACT):
        got, want = np.asarray(got), np.asarray(want)
        assert got.shape == want.shape and got.dtype == want.dtype, what
        if want.dtype.kind in "iu":
            step = 0 if exact or want.dtype == np.int32 else 1
            far = np.abs(got.astype(np.int64) - want.astype(np.int64)) > step
        else:
            a, b = got.astype(np.float32), want.astype(np.float32)
            same = (a == b) & (np.signbit(a) == np.signbit(b)) | (np.isnan(a) & np.isnan(b))
            if not exact:
                info = ml_dtypes.finfo(want.dtype)
                top = np.abs(b) if largest is None else np.maximum(np.abs(b), largest)
                top = np.maximum(top, float(info.tiny))
                with np.errstate(invalid="ignore"):
                    same |= np.abs(a - b) <= 2 * float(info.eps) * top
            far = ~same
        assert not far.any(), (
            f"{what}: {far.sum()} of {far.size} differ, the first at "
            f"{tuple(np.argwhere(far)[0])}: got {got[far][0]}, want {want[far][0]}"
        )

    return check
