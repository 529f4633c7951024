#include "gemm/plan.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "gemm/acc16.h"
#include "gemm/f32_panels.h"

namespace qgemm {
namespace {

// A thread is worth waking for so many cycles of work: that costs some microseconds. It is worth
// using for fewer where it is at hand: it is there within one (Zen 5: 16x256x512 4.9 -> 3.0 µs). A
// part of K is to be worth more, for its sums are added up.
constexpr double kCyclesToWake = 100e3, kCyclesToHand = 8e3, kCyclesToCut = 30e3;
// Bytes of weights a core streams per cycle when they come from beyond its L2; those in blocks, of
// language models, most likely from memory.
constexpr double StreamBytesPerCycle(WType w) { return IsBlocks(w) ? 3 : 8; }
// Where x is widened for parts of K, its copies may be so many times as large as what is in cache.
constexpr std::int64_t kMostCopies = 8;
constexpr std::int64_t kFewPanels = 4;  // a row of x is copied for more
// More plans than any program has shapes; beyond it the cache starts anew.
constexpr std::size_t kMaxPlans = 4096;

struct PlanKeyHash {
  std::size_t operator()(const PlanKey& key) const {
    const GemmSpec& spec = key.spec;
    std::uint64_t hash = BitsOf(spec.epilogue) | std::uint64_t(spec.x) << 21 |
                         std::uint64_t(key.isa) << 24 | std::uint64_t(key.acc16) << 28 |
                         std::uint64_t(spec.w) << 29 | std::uint64_t(key.threads) << 32;
    const std::int64_t form = std::int64_t(key.f32_panels) << 5 |
                              std::int64_t(spec.transposed) << 4 |
                              std::int64_t(spec.blocks.scale) << 2 | spec.blocks.minimum << 1 |
                              std::int64_t(spec.keeps_x);
    for (const std::int64_t v : {key.shape.m, key.shape.n, key.shape.k,
                                 key.shape.batch * 2 + key.shape.ragged, spec.group << 6 | form}) {
      hash = (hash ^ std::uint64_t(v)) * 0x9e3779b97f4a7c15ULL;
      hash ^= hash >> 29;
    }
    return std::size_t(hash);
  }
};

// Cycles one core would need for one product: the larger of arithmetic and streaming the weights,
// then what a row costs to quantize, and in each panel to finish.
double EstimateCycles(const Plan& plan) {
  const GemmShape& shape = plan.key.shape;
  const PackedLayout& layout = plan.layout;
  const bool quantizes = IsFloat(plan.key.spec.x) && !plan.key.spec.FloatSums();
  const double of_row = (quantizes ? 64 + double(shape.k) / 4 : 0) + 16 * double(layout.Panels());
  return std::max(double(shape.m) * double(layout.Elements()) / plan.family->macs_per_cycle,
                  double(layout.Bytes()) / StreamBytesPerCycle(layout.w)) +
         double(shape.m) * of_row;
}

std::int64_t ThreadsFor(const PlanKey& key, double cycles, double cycles_each) {
  return std::clamp<std::int64_t>(std::int64_t(cycles / cycles_each), 1, key.threads);
}

// Cuts the last item, of one panel, into so many, each of whole tiles.
void CutLastItem(Plan& plan, std::int64_t parts) {
  const WorkItem item = plan.items.back();
  const EvenSplit tiles = plan.Tiles(item.rows);
  const EvenSplit cut{tiles.parts, std::min(parts, tiles.parts)};
  plan.items.pop_back();
  for (std::int64_t i = 0; i < cut.parts; ++i) {
    const std::int64_t begin = tiles.Begin(cut.Begin(i)), end = tiles.Begin(cut.Begin(i + 1));
    plan.items.push_back({item.batch, item.first_row + begin, end - begin, item.first_panel, 1});
  }
}

// Adds all rows in blocks by all panels in groups, the first of them of `fresh` panels or more. The
// items of a block follow each other, so that one participant tends to stay in a block and prepares
// its rows of x once. Threads begin with `blocks_each`, and the last item that each finds there is
// cut into `parts`: who waits at the end waits for one of them (median of 1024x1024x1024
// on two cores 0.4 % less).
void AddItems(Plan& plan, const EvenSplit& rows, std::int64_t groups, std::int64_t fresh,
              std::int64_t blocks_each, std::int64_t parts) {
  const std::int64_t all = plan.layout.Panels();
  const std::int64_t first = std::min(all, std::max(fresh, CeilDiv(all, groups)));
  const EvenSplit others{all - first, std::min(groups - 1, all - first)};
  for (std::int64_t block = 0; block < rows.parts; ++block) {
    const std::int64_t row = rows.Begin(block), count = rows.Size(block);
    plan.items.push_back({0, row, count, 0, first});
    for (std::int64_t g = 0; g < others.parts; ++g) {
      plan.items.push_back({0, row, count, first + others.Begin(g), others.Size(g)});
    }
    const bool last = (block + 1) % blocks_each == 0 && others.parts > 0;
    if (last && plan.items.back().panels == 1) CutLastItem(plan, parts);
  }
}

// Splits one product, of so many cycles, among `threads`. Over M where every thread gets full
// tiles: no two threads then write near each other and the rows of x are prepared once. Over N
// otherwise: each thread streams its own part of the weights, or prepares it.
void SplitProduct(Plan& plan, double cycles, std::int64_t threads) {
  const GemmShape& shape = plan.key.shape;
  const std::int64_t tile_rows = plan.family->max_rows;
  std::int64_t row_blocks = CeilDiv(shape.m, plan.rows_in_cache);
  std::int64_t fresh = 0, parts = 1, blocks_each = 1;
  double cycles_per_item = kCyclesToWake;
  // AMX multiplies so fast that the weights, if each thread read all, would be late.
  const bool quantizes = IsFloat(plan.key.spec.x) && !IsAsItIs(plan.family->a_format);
  const bool late = plan.family->finish != nullptr && !quantizes && shape.n > shape.m;
  const bool by_panels = (plan.PreparesPanels() || late) && SharesRows(shape, threads);
  if (shape.m >= 2 * tile_rows * threads && !by_panels) {
    row_blocks = RoundUp(row_blocks, threads);
    fresh = plan.fresh_panels;
    cycles_per_item /= 4;  // who waits at the end waits for one item
    if (threads > 1 && !plan.PreparesPanels()) {
      const double of_panel = cycles / double(row_blocks * plan.layout.Panels());
      parts = std::max<std::int64_t>(1, std::int64_t(of_panel / cycles_per_item));
      blocks_each = row_blocks / threads;
    }
  }
  std::int64_t panel_groups = 1;
  if (threads > 1) {
    const double items = std::max(double(threads), cycles / cycles_per_item);
    panel_groups = std::min(plan.layout.Panels(), std::int64_t(items) / row_blocks);
    // As many for each thread, if there are enough.
    if (panel_groups > threads) panel_groups -= panel_groups % threads;
  }
  AddItems(plan, {shape.m, row_blocks}, std::max<std::int64_t>(1, panel_groups), fresh, blocks_each,
           parts);
}

// Whole products are the items of a large batch; the products of a small one are split.
void SplitWork(Plan& plan) {
  constexpr std::int64_t kProductsPerThread = 4;
  const std::int64_t batch = plan.key.shape.batch;
  const double cycles = EstimateCycles(plan);
  const double all = cycles * double(batch);
  const std::int64_t threads = ThreadsFor(plan.key, all, kCyclesToHand);
  const bool large = batch >= kProductsPerThread * threads;
  SplitProduct(plan, cycles, large ? 1 : ThreadsFor(plan.key, cycles, kCyclesToHand));
  plan.products = batch;
  plan.threads = int(std::min<std::int64_t>(threads, std::int64_t(plan.items.size()) * batch));
  plan.woken = int(std::min<std::int64_t>(plan.threads, ThreadsFor(plan.key, all, kCyclesToWake)));
}

// Whole cache lines, an odd number: else those of some rows would compete for the same places.
std::int64_t CopiedStride(std::int64_t row_bytes) { return (CeilDiv(row_bytes, 64) | 1) * 64; }

std::vector<KPart> PartsInUse(std::int64_t k_blocks) {
  if (k_blocks == 1) return {KPart::kWhole};
  if (k_blocks == 2) return {KPart::kFirst, KPart::kLast};
  return {KPart::kFirst, KPart::kMiddle, KPart::kLast};
}

std::vector<TileStep> MakeSteps(const Plan& plan, int rows, int width) {
  std::vector<TileStep> steps;
  const KernelFamily& family = *plan.family;
  // Weights that take a good part of the L3 have left it before they are needed again; from a slow
  // one they come late, too (2 to 6 rows of 768x3072: on Ice Lake 1.15 to 1.3 times as fast, on Zen
  // 3 twice).
  const auto cached = std::int64_t(Cpu().fast_l3 ? Cpu().l3_bytes / 8 : Cpu().l2_bytes / 2);
  const bool streams = Cpu().wants_fetches && plan.key.shape.m <= family.max_rows &&
                       !plan.key.spec.transposed &&
                       plan.layout.Bytes() * plan.key.shape.batch > cached;
  const int widest = rows == 1 && streams && family.streaming_columns > 0
                         ? family.streaming_columns
                         : family.max_columns(rows);
  for (int column = 0; column < width;) {
    TileStep step{};
    step.column = column;
    const int columns = std::min(widest, width - column);
    for (const KPart part : PartsInUse(plan.is_parts ? 1 : plan.k_blocks)) {
      const bool from_sums = plan.key.acc16 || plan.parts != nullptr;
      const TileKey key{rows,
                        columns,
                        plan.key.acc16 ? columns : width,
                        part,
                        streams,
                        plan.epilogue,
                        from_sums,
                        plan.layout.w,
                        plan.layout.blocks,
                        plan.key.f32_panels,
                        plan.layout.PaddedK() < 4 * kQuad};
      step.keys[int(part)] = key;
      step.kernels[int(part)] = family.tile(key);
    }
    steps.push_back(step);
    column += columns;
  }
  return steps;
}

void AddSteps(Plan& plan, int rows) {
  for (const std::int64_t panel : {std::int64_t(0), plan.layout.Panels() - 1}) {
    const int width = int(plan.layout.PanelWidth(panel));
    auto& steps = plan.steps[rows - 1][PanelKind(width)];
    if (steps.empty()) steps = MakeSteps(plan, rows, width);
  }
}

// What makes f32 panels.
void AddWidening(Plan& plan) {
  const PackedLayout& layout = plan.layout;
  for (const std::int64_t panel : {std::int64_t(0), layout.Panels() - 1}) {
    const int width = int(layout.PanelWidth(panel));
    TileKey key;
    key.rows = 0;
    key.columns = key.panel_columns = width;
    key.epilogue.w_zero = plan.epilogue.w_zero;
    key.epilogue.float_sums = true;
    key.w = layout.w;
    key.blocks = layout.blocks;
    const int index = PanelKind(width);
    plan.widen_keys[index] = key;
    plan.widen[index] = plan.family->tile(key);
  }
}

// A tile fetches as many bytes as it reads of prepared rows. The panels share the L2 with these.
std::int64_t FreshPanels(const Plan& plan) {
  if (plan.PreparesPanels() || plan.family->finish != nullptr) return 0;
  const int columns = plan.family->max_columns(plan.family->max_rows);
  const std::int64_t fetched = kPanelColumns / columns * SizeOf(plan.family->a_format);
  const std::int64_t panel_bytes = std::max<std::int64_t>(1, plan.layout.PanelOffset(1));
  const std::int64_t in_cache = std::int64_t(Cpu().l2_bytes / 2) / panel_bytes;
  const std::int64_t most = std::clamp<std::int64_t>(in_cache, 1, kMostFreshPanels);
  return std::min(most, CeilDiv(SizeOf(plan.key.spec.x), fetched));
}

// The steps of the first and the last panel, for the tiles of all items.
void AddSteps(Plan& plan) {
  for (const WorkItem& item : plan.items) {
    const EvenSplit tiles = plan.Tiles(item.rows);
    for (const std::int64_t tile : {std::int64_t(0), tiles.parts - 1}) {
      AddSteps(plan, int(tiles.Size(tile)));
    }
  }
}

// How many parts of K a product of few rows is cut into, for threads to have as much work each.
std::int64_t KParts(const Plan& plan) {
  const GemmShape& shape = plan.key.shape;
  const std::int64_t panels = plan.layout.Panels();
  const std::int64_t threads = ThreadsFor(plan.key, EstimateCycles(plan), kCyclesToCut);
  const bool many_rows = shape.m >= 2 * plan.family->max_rows * threads;
  if (many_rows || shape.batch > 1 || plan.k_blocks > 1 || plan.key.acc16) return 1;
  // Float sums are those of all of K in order, whatever the number of threads.
  if (plan.epilogue.float_sums) return 1;
  return panels < 2 * threads && panels % threads != 0 ? threads : 1;
}

// Cuts K into parts: their sums are a plan of their own.
void AddParts(Plan& plan, std::int64_t count) {
  const double cycles = EstimateCycles(plan);
  // Of few rows, AMX has no kernels that start from sums.
  if (plan.key.isa == Isa::kAmxInt8) plan.family = &FamilyOf(Isa::kAvx512Vnni);
  auto parts = std::make_shared<Plan>();
  parts->is_parts = true;
  parts->key = plan.key;
  parts->family = plan.family;
  parts->layout = plan.layout;
  parts->epilogue.out = OutType::kS32;
  parts->k_block = RoundUp(CeilDiv(plan.key.shape.k, count), kQuad);
  parts->k_blocks = CeilDiv(plan.key.shape.k, parts->k_block);
  parts->in_place = plan.in_place;
  parts->a_stride = plan.a_stride;
  for (std::int64_t part = 0; part < parts->k_blocks; ++part) {
    parts->items.push_back({0, 0, plan.key.shape.m, 0, plan.layout.Panels(), part});
  }
  AddSteps(*parts);
  plan.items.push_back({0, 0, plan.key.shape.m, 0, plan.layout.Panels()});
  plan.threads = int(parts->k_blocks);
  plan.woken = int(ThreadsFor(plan.key, cycles, kCyclesToWake));
  plan.parts = std::move(parts);
  AddSteps(plan);
}

// By the work of all rows and the weights of as many groups as these can belong to.
int RaggedThreads(const Plan& plan) {
  const GemmShape& shape = plan.key.shape;
  const double cycles =
      std::max(double(shape.m) * double(plan.layout.Elements()) / plan.family->macs_per_cycle,
               double(std::min(shape.m, shape.batch)) * double(plan.layout.Bytes()) /
                   StreamBytesPerCycle(plan.layout.w));
  return int(std::clamp<double>(cycles / kCyclesToWake, 1, plan.key.threads));
}

std::shared_ptr<const Plan> MakePlan(const PlanKey& key) {
  auto plan = std::make_shared<Plan>();
  plan->key = key;
  const bool transposed = key.spec.transposed;
  const WType w = transposed ? WType::kF32 : key.spec.w;
  const std::int64_t group = transposed ? 0 : key.spec.group;
  const bool floats = key.spec.FloatSums(), blocks = IsBlocks(w);
  const KernelFamily* const pairs = PairsFamilyOf(key.isa, key.spec.x, w);
  plan->family = key.acc16 ? Acc16FamilyOf(key.isa)
                 : pairs   ? pairs
                 : floats  ? &FloatFamilyOf(key.isa)
                 : blocks  ? &BlockFamilyOf(key.isa)
                           : &FamilyOf(key.isa);
  plan->layout = {key.shape.k, key.shape.n, w, blocks ? group : 0, {}};
  if (blocks) plan->layout.blocks = key.spec.blocks;
  if (transposed) {
    plan->source = {key.shape.n, key.shape.k, key.spec.w, key.spec.group, key.spec.blocks};
    plan->transpose = TransposeOf(key.isa);
  }
  Epilogue& epilogue = plan->epilogue;
  epilogue = key.spec.epilogue;
  epilogue.w_zero = epilogue.w_zero && !transposed;
  epilogue.float_sums = floats || blocks;
  if (IsFloat(key.spec.x)) {
    if (!epilogue.float_sums) epilogue.x_scale = epilogue.x_zero = Granularity::kRow;
    plan->row_kernels = plan->family->rows(key.spec.x);
  }
  if (epilogue.x_zero == Granularity::kNone && ZeroShift(key.spec.x) != 0) {
    epilogue.x_zero = Granularity::kTensor;
  }
  // An int32 result wraps, so it needs no blocks; float sums need those of scales. Kernels of
  // weights in blocks know them.
  const bool blocked = epilogue.out != OutType::kS32 && (!floats || group > 0) && !blocks;
  epilogue.w_groups = group > 0 && !blocks;
  plan->k_blocks = blocked ? KBlocks(key.shape.k, epilogue.w_zero, group) : 1;
  plan->k_block = plan->k_blocks > 1 ? KBlock(epilogue.w_zero, group) : plan->layout.PaddedK();
  if (transposed && key.shape.k > kF32PanelRows) {
    plan->k_blocks = CeilDiv(key.shape.k, kF32PanelRows);
    plan->k_block = kF32PanelRows;
  }
  if (key.f32_panels) {
    plan->k_block = F32PanelBlock(plan->layout);
    plan->k_blocks = std::max<std::int64_t>(1, CeilDiv(plan->layout.PaddedK(), plan->k_block));
  }
  const bool same_format = pairs ? true
                           : floats
                               ? key.spec.x == XType::kF32
                               : key.spec.x == XType::kU8 && plan->family->a_format == AFormat::kU8;
  const std::int64_t row_bytes = plan->RowBytes();
  // Tiles load a column of x at a time: of rows that compete for places in the L1 they take copies
  // that do not (1024x1024x1024 on AMX: 1.1 times as fast).
  const bool suits = plan->family->finish == nullptr || row_bytes == CopiedStride(row_bytes) ||
                     plan->layout.Panels() <= kFewPanels;
  plan->in_place = same_format && key.shape.k == plan->layout.PaddedK() && suits;
  plan->a_stride = plan->in_place
                       ? key.shape.k * SizeOf(key.spec.x)
                       : CopiedStride(plan->layout.PaddedK() * SizeOf(plan->family->a_format));
  if (key.shape.m == 0 || key.shape.n == 0 || key.shape.batch == 0) return plan;
  if (key.f32_panels) AddWidening(*plan);
  const std::int64_t cache_bytes =
      plan->PreparesPanels() ? kSharedBlockBytes : std::int64_t(Cpu().l2_bytes / 4);
  std::int64_t cached_bytes = plan->a_stride;
  if (plan->MakesPanels()) {
    // Of a part; but copies are of whole rows.
    cached_bytes = std::max(std::min(plan->k_block * SizeOf(AFormat::kF32), cached_bytes),
                            plan->in_place ? 0 : cached_bytes / kMostCopies);
  }
  plan->rows_in_cache = std::max<std::int64_t>(
      plan->family->max_rows, cache_bytes / std::max<std::int64_t>(1, cached_bytes));
  plan->fresh_panels = FreshPanels(*plan);
  if (key.shape.ragged) {
    for (int rows = 1; rows <= std::min<std::int64_t>(plan->family->max_rows, key.shape.m);
         ++rows) {
      AddSteps(*plan, rows);
    }
    plan->threads = plan->woken = RaggedThreads(*plan);
    return plan;
  }
  if (const std::int64_t parts = KParts(*plan); parts > 1) {
    AddParts(*plan, parts);
  } else {
    SplitWork(*plan);
    AddSteps(*plan);
  }
  return plan;
}

class PlanCache {
 public:
  std::shared_ptr<const Plan> Get(const PlanKey& key) {
    {
      const std::shared_lock lock(mutex_);
      const auto found = plans_.find(key);
      if (found != plans_.end()) {
        hits_.fetch_add(1, std::memory_order_relaxed);
        return found->second;
      }
    }
    misses_.fetch_add(1, std::memory_order_relaxed);
    auto plan = MakePlan(key);
    const std::unique_lock lock(mutex_);
    if (plans_.size() >= kMaxPlans) plans_.clear();
    return plans_.emplace(key, std::move(plan)).first->second;
  }

  PlanCacheInfo Info() {
    const std::shared_lock lock(mutex_);
    return {std::int64_t(plans_.size()), hits_.load(), misses_.load()};
  }

 private:
  std::shared_mutex mutex_;
  std::atomic<std::int64_t> hits_{0}, misses_{0};  // beside the lock, whose line is at hand
  std::unordered_map<PlanKey, std::shared_ptr<const Plan>, PlanKeyHash> plans_;
};

PlanCache& Plans() {
  // Never destroyed: a program may still run on another thread while the process exits.
  static PlanCache& cache = *new PlanCache;
  return cache;
}

}  // namespace

std::int64_t AddGroups(const Plan& plan, const std::int32_t* sizes, std::vector<WorkItem>& items) {
  const std::int64_t panels = plan.layout.Panels();
  std::int64_t row = 0;
  for (std::int64_t group = 0; group < plan.key.shape.batch; ++group) {
    const std::int64_t size = std::clamp<std::int64_t>(sizes[group], 0, plan.key.shape.m - row);
    if (size == 0) continue;
    // As in SplitProduct: rows for every thread, or panels.
    const bool by_rows = plan.threads > 1 && size >= 2 * plan.family->max_rows * plan.threads;
    const std::int64_t blocks = CeilDiv(size, plan.rows_in_cache);
    const EvenSplit rows{size, by_rows ? RoundUp(blocks, plan.threads) : blocks};
    const EvenSplit columns{
        panels,
        by_rows ? 1 : std::min<std::int64_t>(panels, plan.threads > 1 ? 2 * plan.threads : 1)};
    for (std::int64_t block = 0; block < rows.parts; ++block) {
      for (std::int64_t part = 0; part < columns.parts; ++part) {
        items.push_back({group, row + rows.Begin(block), rows.Size(block), columns.Begin(part),
                         columns.Size(part)});
      }
    }
    row += size;
  }
  return row;
}

std::shared_ptr<const Plan> GetPlan(const PlanKey& key) { return Plans().Get(key); }

PlanCacheInfo InfoOfPlans() { return Plans().Info(); }

}  // namespace qgemm
