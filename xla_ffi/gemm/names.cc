#include "gemm/names.h"

#include "gemm/layout.h"

namespace qgemm {
namespace {

const char* Suffix(Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return "_relu";
    case Activation::kGelu:
      return "_gelu";
    case Activation::kGeluTanh:
      return "_gelu_tanh";
    case Activation::kSilu:
      return "_silu";
    case Activation::kNone:
      break;
  }
  return "";
}

const char* Suffix(ResidualType residual) {
  switch (residual) {
    case ResidualType::kF32:
      return "_residual_f32";
    case ResidualType::kBf16:
      return "_residual_bf16";
    case ResidualType::kF16:
      return "_residual_f16";
    case ResidualType::kNone:
      break;
  }
  return "";
}

const char* Suffix(KPart part) {
  switch (part) {
    case KPart::kFirst:
      return "_first";
    case KPart::kMiddle:
      return "_middle";
    case KPart::kLast:
      return "_last";
    case KPart::kWhole:
      break;
  }
  return "";
}

// `what`, and of which granularity; nothing for the `usual` one.
std::string Suffix(const char* what, Granularity granularity, Granularity usual) {
  if (granularity == usual) return "";
  switch (granularity) {
    case Granularity::kTensor:
      return std::string(what) + "_tensor";
    case Granularity::kRow:
      return std::string(what) + "_row";
    case Granularity::kNone:
      break;
  }
  return std::string(what) + "_none";
}

}  // namespace

std::string Dims(std::initializer_list<std::int64_t> sizes) {
  std::string text;
  for (const std::int64_t size : sizes) text += (text.empty() ? "" : "x") + std::to_string(size);
  return text;
}

const char* Name(XType x) {
  switch (x) {
    case XType::kS8:
      return "s8";
    case XType::kF32:
      return "f32";
    case XType::kBf16:
      return "bf16";
    case XType::kF16:
      return "f16";
    case XType::kU8:
      break;
  }
  return "u8";
}

const char* Name(WType w) {
  switch (w) {
    case WType::kF16:
      return "f16";
    case WType::kBf16:
      return "bf16";
    case WType::kU4:
      return "u4";
    case WType::kU8:
      return "u8";
    case WType::kF32:
      return "f32";
    case WType::kS8:
      break;
  }
  return "s8";
}

const char* Name(OutType out) {
  switch (out) {
    case OutType::kBf16:
      return "bf16";
    case OutType::kF16:
      return "f16";
    case OutType::kU8:
      return "u8";
    case OutType::kS8:
      return "s8";
    case OutType::kS32:
      return "s32";
    case OutType::kF32:
      break;
  }
  return "f32";
}

std::string Name(const BlockForm& form) {
  const auto& [scale, minimum] = form;
  const char* type = scale == ScaleType::kF32 ? "f32" : scale == ScaleType::kF16 ? "f16" : "bf16";
  return type + std::string(minimum ? "_minimum" : "");
}

std::string Name(const Epilogue& epilogue) {
  // All members by name: a new one does not compile until it has its place below.
  const auto& [out, activation, x_zero, x_scale, w_zero, w_groups, bias, residual, per_column,
               float_sums] = epilogue;
  std::string name = Name(out);
  name += per_column ? "_per_column" : "";
  name += Suffix(activation);
  name += bias ? "_bias" : "";
  name += Suffix(residual);
  name += Suffix("_xscale", x_scale, Granularity::kTensor);
  name += Suffix("_xzero", x_zero, Granularity::kNone);
  name += w_zero ? "_wzero" : "";
  name += w_groups ? "_wgroups" : "";
  name += float_sums ? "_float" : "";
  return name;
}

std::string Name(const TileKey& key) {
  const auto& [rows, columns, panel_columns, part, streams, epilogue, from_sums, w, blocks,
               f32_panel, short_k, ends, first_row] = key;
  std::string name = rows > 0 ? "tile_" + std::to_string(rows) + "x" : "panel_";
  name += std::to_string(columns);
  if (panel_columns != kPanelColumns) name += "_panel" + std::to_string(panel_columns);
  name += Suffix(part);
  name += streams ? "_streams" : "";
  name += from_sums ? "_from_sums" : "";
  name += f32_panel ? "_f32_panel" : "";
  name += short_k ? "_short_k" : "";
  if (ends) name += "_ends_from" + std::to_string(first_row);
  if (w != WType::kS8) name += std::string("_") + Name(w);
  if (IsBlocks(w)) name += std::string("_") + Name(blocks);
  return name + "_" + Name(epilogue);
}

std::string RowKernelName(RowOp op, XType x) {
  const char* name = op == RowOp::kRange      ? "row_range_"
                     : op == RowOp::kToByte   ? "row_to_byte_"
                     : op == RowOp::kToInt16  ? "row_to_int16_"
                     : op == RowOp::kToF32    ? "row_to_f32_"
                     : op == RowOp::kToGroups ? "row_to_groups_"
                                              : "row_in_range_to_byte_";
  return std::string(name) + Name(x);
}

}  // namespace qgemm
