// A tensor in global memory as the copy engine (TMA) sees it: five dimensions, and a box.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace mbt_fast::cuda {

enum class MapElement { kBfloat16, kFloat16, kFloat32 };

constexpr int kMapRank = 5;

// The first dimension is contiguous; strides are those of the others, in bytes.
struct TensorMapArguments {
  MapElement element;
  void* base;
  uint64_t sizes[kMapRank];
  uint64_t strides[kMapRank - 1];
  uint32_t box[kMapRank];
  bool swizzle;  // 128 bytes; the box is as wide as that
};

// As the kernel takes it: the driver's opaque 128 bytes, or for the emulation the arguments.
struct alignas(64) TensorMap {
  uint64_t words[16];
};

inline uint32_t element_bytes(MapElement element) {
  return element == MapElement::kFloat32 ? 4 : 2;
}

// What the copy engine cannot do, refused before a launch: std::invalid_argument says what.
inline void check_tensor_map(const std::string& name, const TensorMapArguments& map) {
  const auto must = [&](bool holds, const std::string& requirement, uint64_t value) {
    if (!holds)
      throw std::invalid_argument(name + " must " + requirement + ", got " + std::to_string(value));
  };
  const auto address = reinterpret_cast<uint64_t>(map.base);
  must(address % 16 == 0, "begin at a multiple of 16 bytes for the copy engine", address);
  for (const uint64_t size : map.sizes)
    must(size >= 1 && size <= uint64_t{1} << 32, "have dimensions of 1 to 2^32", size);
  for (const uint64_t stride : map.strides) {
    must(stride > 0 && stride % 16 == 0, "have strides of a multiple of 16 bytes", stride);
    must(stride < uint64_t{1} << 40, "have strides below 2^40 bytes", stride);
  }
  for (const uint32_t side : map.box)
    must(side >= 1 && side <= 256, "have a box of 1 to 256", side);
  const uint32_t width = map.box[0] * element_bytes(map.element);
  must(width % 16 == 0, "have a box of a multiple of 16 bytes", width);
  must(!map.swizzle || width == 128, "have a box of 128 bytes", width);
}

// Raises std::invalid_argument where the copy engine cannot read the tensor, std::runtime_error
// where there is no driver.
TensorMap make_tensor_map(const std::string& name, const TensorMapArguments& arguments);

}  // namespace mbt_fast::cuda
