"""Low-precision linear algebra for JAX on CPUs."""

from jax_qgemm import compat as compat  # first: refuses a jax that is too old
from jax_qgemm.config import config as config
from jax_qgemm.exporting import export_checks as export_checks
from jax_qgemm.fake_quantization import fake_quantize as fake_quantize
from jax_qgemm.kernels import KernelCacheInfo as KernelCacheInfo
from jax_qgemm.kernels import dump_kernels as dump_kernels
from jax_qgemm.kernels import kernel_cache_info as kernel_cache_info
from jax_qgemm.kv_cache import KVCache as KVCache
from jax_qgemm.kv_cache import attention as attention
from jax_qgemm.linear import dot as dot
from jax_qgemm.linear import quantized_linear as quantized_linear
from jax_qgemm.linear import ragged_dot as ragged_dot
from jax_qgemm.native import cpu_info as cpu_info
from jax_qgemm.outliers import outlier_density as outlier_density
from jax_qgemm.packing import pack as pack
from jax_qgemm.packing import pack_blocks as pack_blocks
from jax_qgemm.packing import pack_weight as pack_weight
from jax_qgemm.packing import unpack as unpack
from jax_qgemm.quantization import dequantize as dequantize
from jax_qgemm.quantization import quantize as quantize
from jax_qgemm.row_parallel import RowParallelWeight as RowParallelWeight
from jax_qgemm.row_parallel import pack_row_parallel as pack_row_parallel
from jax_qgemm.types import PackedWeight as PackedWeight
from jax_qgemm.types import QuantizedArray as QuantizedArray
from jax_qgemm.version import __version__ as __version__
