// Products are cut into blocks for threads; the arithmetic is in linear_kernel.hpp.
//
// The cut depends on the number of threads, the bits of a result do not: see there.
#include "linear.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common.hpp"
#include "scratch.hpp"

namespace mbt_fast::cpu {
namespace {

constexpr int64_t kTasksPerThread = 2;
constexpr int64_t kMostElements = 384 << 10;  // of a block: 1.5 MB of sums
constexpr int64_t kLeastRows = 192;           // a block packs its right operand for so many at least

// A whole product, or one block of it; without a product the sums of the rows of `left`.
struct Task {
  const LinearProduct* product;
  LinearBlock block;

  int64_t multiply_adds() const {
    return product ? block.rows * block.columns * block.depth : 0;
  }
};

struct Cut {
  int64_t rows, columns;

  int64_t blocks(const LinearBlock& whole) const {
    return ceil_div(whole.rows, rows) * ceil_div(whole.columns, columns);
  }
};

int64_t half(int64_t size, int64_t multiple) { return round_up(ceil_div(size, 2), multiple); }

// At least `wanted` blocks, or as many as are worth it. Every block packs its part of the right
// operand, for which its rows should be many; that of a weight's gradient also packs the left one,
// for which its columns should be.
Cut cut_of(const LinearCall& call, const Task& task, int64_t wanted) {
  const int64_t panel = call.kernels().panel, columns = round_up(task.block.columns, panel);
  const bool packs_both = task.product == &call.kernels().weight_gradient;
  Cut cut{0, smaller(task.product->columns, columns)};
  cut.rows = smaller(larger(kLeastRows, kMostElements / cut.columns), task.block.rows);
  const auto halve_rows = [&] {
    while (cut.blocks(task.block) < wanted && cut.rows > kLeastRows) cut.rows = half(cut.rows, 1);
  };
  if (packs_both) halve_rows();
  const int64_t least = packs_both ? 4 * panel : panel;
  while (cut.blocks(task.block) < wanted && cut.columns > least) {
    cut.columns = half(cut.columns, panel);
  }
  halve_rows();
  return cut;
}

LinearBlock part_of(const LinearCall& call, const Task& whole, const Cut& cut, int64_t row,
                    int64_t column) {
  const LinearKernels& kernels = call.kernels();
  LinearBlock part = whole.block;
  part.rows = smaller(cut.rows, whole.block.rows - row);
  part.columns = smaller(cut.columns, whole.block.columns - column);
  const bool is_left_transposed = whole.product == &kernels.weight_gradient;
  const bool is_right_transposed = whole.product == &kernels.forward;
  part.left.data =
      at(call.dtype, part.left.data, row * (is_left_transposed ? 1 : part.left.stride));
  part.right.data =
      at(call.dtype, part.right.data, column * (is_right_transposed ? part.right.stride : 1));
  if (part.bias) part.bias += column;
  part.out = at(call.dtype, part.out, row * part.out_stride + column);
  return part;
}

void run(const LinearCall& call, const std::vector<Task>& wholes) {
  int64_t all = 0, scratch_bytes = 0;
  for (const Task& whole : wholes) all += whole.multiply_adds();
  std::vector<Task> tasks;
  for (const Task& whole : wholes) {
    if (!whole.product) {
      tasks.push_back(whole);
      continue;
    }
    const double share = static_cast<double>(whole.multiply_adds()) / static_cast<double>(all);
    const double wanted = std::ceil(share * static_cast<double>(kTasksPerThread * call.threads));
    const Cut cut = cut_of(call, whole, static_cast<int64_t>(wanted));
    for (int64_t row = 0; row < whole.block.rows; row += cut.rows) {
      for (int64_t column = 0; column < whole.block.columns; column += cut.columns) {
        tasks.push_back({whole.product, part_of(call, whole, cut, row, column)});
      }
    }
    scratch_bytes = std::max(scratch_bytes,
                             whole.product->scratch(cut.rows, cut.columns, whole.block.depth));
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
    return a.multiply_adds() > b.multiply_adds();
  });
  const int64_t count = tasks.size(), worth = 1 + (all >> 20);  // as in bottleneck_attention.cpp
  const int threads = static_cast<int>(std::min({int64_t{call.threads}, count, worth}));
  const Scratch scratch(threads, scratch_bytes);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    const auto& [product, block] = tasks[i];
    if (product) {
      product->block(block, scratch.of_this_thread());
    } else {
      call.kernels().sum_of_rows(block.left, block.rows, block.columns,
                                 static_cast<float*>(block.out));
    }
  }
}

}  // namespace

void linear_fwd(const LinearCall& call, const std::vector<LinearForward>& streams) {
  std::vector<Task> tasks;
  for (const LinearForward& s : streams) {
    const auto [rows, inputs, outputs] = s.shape;
    tasks.push_back({&call.kernels().forward,
                     {{s.x, inputs}, {s.weight, inputs}, rows, outputs, inputs, s.bias, s.out, outputs}});
  }
  run(call, tasks);
}

void linear_bwd(const LinearCall& call, const std::vector<LinearBackward>& streams) {
  const LinearKernels& kernels = call.kernels();
  std::vector<Task> tasks;
  for (const LinearBackward& s : streams) {
    const auto [rows, inputs, outputs] = s.shape;
    const Matrix dout{s.dout, outputs};
    if (s.dx) {
      tasks.push_back({&kernels.input_gradient,
                       {dout, {s.weight, inputs}, rows, inputs, outputs, nullptr, s.dx, inputs}});
    }
    if (s.dweight) {
      tasks.push_back({&kernels.weight_gradient,
                       {dout, {s.x, inputs}, outputs, inputs, rows, nullptr, s.dweight, inputs}});
    }
    if (s.dbias) {
      tasks.push_back({nullptr, {dout, {}, rows, outputs, 0, nullptr, s.dbias, 0}});
    }
  }
  run(call, tasks);
}

}  // namespace mbt_fast::cpu
