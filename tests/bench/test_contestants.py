import jax.numpy as jnp
import numpy as np
import pytest

from jax_qgemm.bench.contestants import CONTESTANTS, WEIGHTS_AS, WrongResultError, check
from jax_qgemm.bench.layers import make_layers
from jax_qgemm.bench.libraries import LIBRARIES, own, xla
from jax_qgemm.bench.libraries.jitted import Jitted
from jax_qgemm.bench.shapes import Shape

BY_NAME = {c.name: c for c in CONTESTANTS}
MAKERS = own.PROGRAMS | xla.PROGRAMS
TINY = Shape(3, 20, 70)


def test_every_contestant_has_a_library():
    assert {c.library for c in CONTESTANTS} == {library.name for library in LIBRARIES}


def test_what_is_compared():
    dot, static = BY_NAME["dot"], BY_NAME["quantized_linear"]
    assert dot.rivals(BY_NAME["xla_int8"]) and static.rivals(BY_NAME["xla_f32"])
    assert dot.rivals(BY_NAME["ort_dynamic"]) and not dot.rivals(BY_NAME["ort_static"])
    assert static.rivals(BY_NAME["onednn_static"]) and not static.rivals(dot)
    assert not BY_NAME["xla_f32"].rivals(BY_NAME["ort_dynamic"])
    int4, kept = BY_NAME["dot_int4"], BY_NAME["dot_int4_weight_only"]
    assert int4.rivals(BY_NAME["ort_int4"]) and not int4.rivals(BY_NAME["ort_int4_float"])
    assert kept.rivals(BY_NAME["ort_int4_float"]) and not kept.rivals(BY_NAME["ort_int4"])


def test_bytes_moved():
    assert BY_NAME["dot"].bytes_moved(TINY) == 3 * 70 * 4 + 20 * 70 + 3 * 20 * 4
    assert BY_NAME["xla_bf16"].bytes_moved(TINY) == 2 * (3 * 70 + 20 * 70 + 3 * 20)


@pytest.mark.parametrize("name", BY_NAME)
def test_nan_is_a_wrong_result(name):
    layers = make_layers(TINY, 1)
    with pytest.raises(WrongResultError, match="nan"):
        check(BY_NAME[name], layers, [layers[0].product * float("nan")])


@pytest.mark.parametrize("name", MAKERS)
def test_results_stay_far_below_their_tolerance(name):
    layers = make_layers(Shape(5, 200, 300), 2)
    contestant, program = BY_NAME[name], MAKERS[name](layers)
    assert check(contestant, layers, program.results) < contestant.tolerance / 2
    wrong = [np.asarray(result).copy() for result in program.results]
    wrong[-1][-1, -1] += 100
    with pytest.raises(WrongResultError, match="is off by"):
        check(contestant, layers, wrong)


@pytest.mark.parametrize("weights_as", WEIGHTS_AS)
def test_a_program_keeps_all_its_layers_and_reuses_its_results(weights_as, monkeypatch):
    monkeypatch.setattr(Jitted, "weights_as", weights_as)
    layers = make_layers(TINY, 3)
    program = Jitted([(jnp.dot, (layer.x, layer.w)) for layer in layers])
    before = program.results
    program()
    assert all(old.is_deleted() for old in before)
    for layer, result in zip(layers, program.results, strict=True):
        np.testing.assert_allclose(result, layer.product, rtol=0, atol=1e-5)


def test_layers_are_the_same_in_every_process():
    first, again = make_layers(TINY, 2), make_layers(TINY, 2)
    assert all((a.x == b.x).all() and (a.w == b.w).all() for a, b in zip(first, again, strict=True))
    assert (first[0].w != first[1].w).any()


def test_quantized_operands_are_near():
    layer = make_layers(TINY, 1)[0]
    x = (layer.x_uint8.astype(np.float32) - 128) * layer.x_scale
    assert np.abs(x - layer.x).max() <= 0.501 * layer.x_scale
    assert np.all(np.abs(layer.w_int8 * layer.w_scale - layer.w) <= 0.501 * layer.w_scale)
    q, scale = layer.w_int4, layer.w_int4_scale
    assert q.shape == (70, 20) and q.max() < 16 and scale.shape == (3, 20)
    each = scale.astype(np.float32)[np.arange(70) // 32]
    assert np.all(np.abs((q - 8.0) * each - layer.w) <= 0.51 * each)
    assert np.allclose(layer.int4_product, layer.x @ ((q - 8.0) * each), atol=1e-5)
