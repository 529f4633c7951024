import pytest

from jax_qgemm.bench.shapes import SETS, Shape, list_sets, parse_shapes


def test_parse_shapes():
    assert parse_shapes("default") == SETS["default"].shapes
    assert parse_shapes("1x2x3, 4×5×6") == (Shape(1, 2, 3), Shape(4, 5, 6))
    for text in ("", "1x2", "0x1x1", "1x2x3,", "huge"):
        with pytest.raises(ValueError, match="no shape: expected MxNxK,MxNxK,… or one of default"):
            parse_shapes(text)


@pytest.mark.parametrize("name", SETS)
def test_sets_have_each_shape_once(name):
    shapes = SETS[name].shapes
    assert len(set(shapes)) == len(shapes) > 1
    assert all(isinstance(shape, Shape) and min(shape) > 0 for shape in shapes)
    assert name in list_sets() and str(shapes[-1]) in list_sets()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("fbgemm", Shape(64, 800, 320)),
        ("fbgemm", Shape(1, 4096, 1024)),
        ("bert", Shape(128, 3072, 768)),  # N is the wider side on the way up,
        ("bert", Shape(128, 768, 3072)),  # K on the way down
        ("llm", Shape(1, 11008, 4096)),
        ("llm", Shape(512, 576, 1536)),
        ("recsys", Shape(16, 512, 13)),
        ("recsys", Shape(256, 1, 256)),
    ],
)
def test_what_sets_must_hold(name, shape):
    assert shape in SETS[name].shapes


def test_large_shapes_get_fewer_layers():
    assert [s.layers(8) for s in SETS["default"].shapes] == [8] * 8
    assert Shape(4096, 4096, 4096).layers(8) == 2
    assert Shape(1, 65536, 65536).layers(8) == 1
