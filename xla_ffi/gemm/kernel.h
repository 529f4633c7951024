// The interface of a kernel family: what an ISA has to provide, and what it is given.
#pragma once

#include <cstdint>
#include <memory>

#include "gemm/layout.h"
#include "gemm/spec.h"
#include "gemm/transpose.h"
#include "runtime/cpu.h"

namespace qgemm {

// ---------------------------------------------------------------- tiles

inline constexpr int kMostTileRows = 32;  // of any family

// Which part of K a tile sums (layout.h: KBlock). All but the last leave an f32 sum in `partial`,
// to which the next one adds its own, or, of an f32 panel, from which it goes on.
enum class KPart : std::uint8_t { kWhole, kFirst, kMiddle, kLast };

// Identifies a micro-kernel: `rows` x `columns` outputs of a panel `panel_columns` wide. Everything
// else of a problem (K, strides, pointers) is an argument, so the number of kernels is bounded.
struct TileKey {
  int rows = 1;
  int columns = 16;
  int panel_columns = 64;
  KPart part = KPart::kWhole;
  bool streams = false;  // weights come from memory, once: prefetch them
  Epilogue epilogue;
  bool from_sums = false;  // adds to TileArgs::sums
  WType w = WType::kS8;
  BlockForm blocks;
  // Of float sums: b is f32, [k][panel_columns], made of weights of type w. What makes it, in
  // TileArgs::out, of b and all that belongs to it (and `partial`, two rows of scratch), is a
  // kernel of no rows and all columns.
  bool f32_panel = false;
  bool short_k = false;  // K may have fewer than four quads
  // Of a larger tile these rows from the first one on: what comes after the products of other
  // registers, so that nothing is fetched ahead.
  bool ends = false;
  int first_row = 0;

  // Narrow tiles take turns in a panel, and the later ones find theirs in the cache: lest memory
  // rests meanwhile, each fetches its part of the next panel.
  bool FetchesPart() const { return streams && 4 * columns <= panel_columns; }

  friend bool operator==(const TileKey& a, const TileKey& b) {
    return a.rows == b.rows && a.columns == b.columns && a.panel_columns == b.panel_columns &&
           a.part == b.part && a.streams == b.streams && a.epilogue == b.epilogue &&
           a.from_sums == b.from_sums && a.w == b.w && a.blocks == b.blocks &&
           a.f32_panel == b.f32_panel && a.ends == b.ends && a.first_row == b.first_row &&
           a.short_k == b.short_k;
  }
};

struct DeferredTile;

// What a row of x, quantized by groups, has for one of them.
struct RowGroup {
  float scale;
  // Of blocks with a minimum the scale times the sum of the quantized values; else an int32, minus
  // that sum times the offset of the weights, which the sums of products start from.
  float term;
};

// Pointers are to the first row or column of the tile. Column data may be read up to `columns`, so
// the caller passes padded copies at the end of a matrix; the same for `out`.
struct TileArgs {
  const void* a;          // prepared rows of x, see AFormat; zero-padded to quads
  std::int64_t a_stride;  // bytes between rows
  // What to fetch meanwhile, any address: as many bytes as `a` has, or `b` of a tile that fetches a
  // part of a panel; of families that defer, these.
  const void* next;
  std::int64_t next_bytes;
  const std::int8_t* b;  // the panel, from the tile's first column and first quad on
  std::int64_t quads;    // of K to sum: steps of 4 bytes of a column; not of blocks
  void* out;
  std::int64_t out_stride;                 // bytes between rows
  float* partial;                          // [rows][kPanelColumns], used unless KPart::kWhole
  const std::int32_t* row_sums;            // sum_k a[m,k], if w_zero
  const std::int32_t* row_negative_zeros;  // -x_zero per row, in terms of a
  const float* row_scales;
  const std::int32_t* column_sums;  // sum_k (w[k,n] - w_zero[n])
  const std::int32_t* column_zeros;
  const float* column_scales;
  const float* bias;
  std::int32_t x_negative_zero;  // -x_zero per tensor, in terms of a
  float x_scale;                 // per tensor
  const void* residual;
  std::int64_t residual_stride;  // bytes between rows
  // Requantization: clamp(y * inverse, out_low, out_high), rounded, plus out_zero. The inverse is
  // per tensor or, in out_inverses, per column.
  float out_inverse, out_low, out_high;
  const float* out_inverses;
  std::int32_t out_zero;
  const TileKey* key;        // for kernels that are not generated
  const std::int32_t* sums;  // [rows][kPanelColumns], used if from_sums
  // Of weights in blocks: b then is the first step of the first group.
  const std::uint8_t* block_scales;  // of the first group, from the tile's first column on
  std::int64_t groups, group_steps;  // how many, and steps in each
  std::int64_t group_bytes;          // of the panel
  const RowGroup* row_groups;        // of the first group, by rows; of AFormat::kS8Groups
  std::int64_t row_groups_stride;    // bytes from group to group
  DeferredTile* deferred;            // of families that end a tile later
};

// What is left to do of a tile, and its sums: for a family whose products go on beside that.
struct DeferredTile {
  const void* kernel = nullptr;  // the family's; null: there is nothing
  TileArgs* args = nullptr;      // of the tile, until its end
  int turn = 0;                  // which sums are the next tile's
  alignas(64) std::int32_t sums[2][kMostTileRows * kPanelColumns] = {};
};

// A family that defers may change them, and has them until then.
using TileFn = void (*)(TileArgs*);

// ---------------------------------------------------------------- rows of x

// How a family wants x: unsigned bytes, or the same values as int16, int8 x being shifted by +128;
// or f32; or float x quantized symmetrically by groups to signed bytes; or 16-bit floats as they
// are.
enum class AFormat : std::uint8_t { kU8, kS16, kF32, kS8Groups, kBf16, kF16 };

constexpr bool IsAsItIs(AFormat format) {
  return format == AFormat::kBf16 || format == AFormat::kF16;
}

constexpr std::int64_t SizeOf(AFormat format) {
  switch (format) {
    case AFormat::kF32:
      return 4;
    case AFormat::kS16:
    case AFormat::kBf16:
    case AFormat::kF16:
      return 2;
    case AFormat::kU8:
    case AFormat::kS8Groups:
      break;
  }
  return 1;
}

// The range of a row: min(x, 0), max(x, 0). Where an element is NaN or Inf, so is one of the two.
struct RowRange {
  float low, high;
};
using RangeFn = void (*)(const void* x, std::int64_t count, RowRange* range);

// q[i] = rne(clamp(x[i] * inverse, low, high)) + zero, NaN counting as 0.
struct QuantizeArgs {
  float inverse, low, high;
  std::int32_t zero;
};
using QuantizeFn = void (*)(const void* x, std::int64_t count, const QuantizeArgs* args, void* q);

// y[i] = f32(x[i]).
using WidenFn = void (*)(const void* x, std::int64_t count, float* y);

// Of each of `groups` whole groups: q[i] = rne(x[i] * (127 / amax)), signed bytes, and what its
// RowGroup holds; amax counts as 127 where the scale would be subnormal, a group with NaN or Inf
// has scale NaN and values 0.
struct GroupsArgs {
  std::int64_t group;         // elements in one, a multiple of 16
  std::int64_t stride;        // bytes from RowGroup to RowGroup
  std::int32_t with_minimum;  // what RowGroup::term is
  std::int32_t negative_offset;
};
using GroupsFn = void (*)(const void* x, std::int64_t groups, const GroupsArgs* args, void* q,
                          RowGroup* to);

enum class RowOp : std::uint8_t { kRange, kToByte, kToInt16, kInRangeToByte, kToF32, kToGroups };

struct RowKernels {
  RangeFn range;
  QuantizeFn to_byte;  // uint8 or int8 (the same bits)
  QuantizeFn to_int16;
  QuantizeFn in_range_to_byte;   // uint8; no x is NaN, |x * inverse| < 2^14
  WidenFn to_f32;                // of families of float sums, which may lack the others
  GroupsFn to_groups = nullptr;  // of generated families of blocks
};

// ---------------------------------------------------------------- families

// Brings registers that tiles rely on into the state that they need.
using SetUpFn = void (*)();

// For families whose sums in int16 saturate: splits a panel of weights into what they can take and
// outliers, which it multiplies itself.
class PanelSplitter {
 public:
  virtual ~PanelSplitter() = default;
  // The rows that the next panels meet: `count` of them, of so many quads.
  virtual void SetRows(const std::uint8_t* a, std::int64_t a_stride, std::int64_t count,
                       std::int64_t quads) = 0;
  // For tiles of so many columns, of which a panel has a whole number, or fewer than those of one.
  virtual void Split(const std::int8_t* panel, std::int64_t width, std::int64_t columns) = 0;
  // Of the last panel, until the next: weights for the kernels, a tile's after the other's, and
  // what the outliers add, [rows][kPanelColumns].
  virtual const std::int8_t* weights() const = 0;
  virtual const std::int32_t* sums() const = 0;
};

// Only the arithmetic of a family's micro-kernel, for so many iterations.
struct PeakLoop {
  void (*run)(std::int64_t iterations);
  double macs_per_iteration;
};

// One row of the kernel table (kernels.cc).
struct KernelFamily {
  Isa isa;
  AFormat a_format;
  int max_rows;                    // of a tile, at most kMostTileRows
  double macs_per_cycle;           // of one core at best, for the cost model
  int (*max_columns)(int rows);    // the widest tile of so many rows: divides 64, a multiple of 8
  TileFn (*tile)(const TileKey&);  // generated at first use, then cached
  RowKernels (*rows)(XType x);     // of a float x
  PeakLoop (*peak)();              // null where there is no such loop
  // What a thread runs before tiles of so many rows, and of 0 rows: after its last tile.
  SetUpFn (*set_up)(int rows) = nullptr;
  // What a thread runs when it needs the results of all tiles, of a family that defers their ends.
  void (*finish)(DeferredTile& deferred) = nullptr;
  // Of a family for large products, the second of its ISA, whose kernels start from sums.
  std::unique_ptr<PanelSplitter> (*make_splitter)() = nullptr;
  // What the CPU needs beside the ISA.
  bool CpuInfo::* needs = nullptr;
  // The widest tile of one row whose weights stream; 0: as max_columns has it.
  int streaming_columns = 0;
};

// Of int8 weights; of float sums; of weights in blocks and a quantized x.
const KernelFamily& FamilyOf(Isa isa);
const KernelFamily& FloatFamilyOf(Isa isa);
const KernelFamily& BlockFamilyOf(Isa isa);
// Of x and weights of one type of 16 bits, multiplied by pairs; null where there is none.
const KernelFamily* PairsFamilyOf(Isa isa, XType x, WType w);
// The family of sums in int16; null where there is none.
const KernelFamily* Acc16FamilyOf(Isa isa);
// What makes panels of a transpose.
TransposeFn TransposeOf(Isa isa);

}  // namespace qgemm
