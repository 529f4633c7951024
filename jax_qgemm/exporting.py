"""Exported programs: what jax.export has to be told about our custom calls and pytrees."""

import json

import jax.export

from jax_qgemm import native
from jax_qgemm.kv_cache import KVCache
from jax_qgemm.row_parallel import RowParallelWeight
from jax_qgemm.types import PackedWeight, QuantizedArray


def export_checks() -> list[jax.export.DisabledSafetyCheck]:
    """For `jax.export.export(f, disabled_checks=jax_qgemm.export_checks())`.

    jax.export refuses custom calls that it does not know. Those of this library it may let pass:
    they have versions in their names, and a release that changes what one does gives it a new
    name and keeps the old one, so that programs run on later releases, as long as JAX reads them
    (it promises six months, and not what a newer JAX wrote). They run in any process
    that has imported jax_qgemm, on any CPU, with the same results as here. With
    `platforms=("cpu", "cuda", "tpu")` other platforms get plain JAX.

    Empty where the extension is missing: then programs hold plain JAX alone.
    """
    return [jax.export.DisabledSafetyCheck.custom_call(target) for target in native.targets]


def _write(static: tuple) -> bytearray:
    return bytearray(json.dumps(static), "utf-8")


def _read(text) -> tuple:
    return tuple(tuple(f) if isinstance(f, list) else f for f in json.loads(bytes(text)))


for _type in (QuantizedArray, PackedWeight, RowParallelWeight, KVCache):
    jax.export.register_pytree_node_serialization(
        _type,
        serialized_name=f"jax_qgemm.{_type.__name__}.v1",
        serialize_auxdata=_write,
        deserialize_auxdata=_read,
    )
