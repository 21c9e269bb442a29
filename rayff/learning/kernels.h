// What the kernels share: threads, and bfloat16 where a compiler has no name for it.
//
// Images are channels-last: element (b, pixel, k) lies at (b * pixels + pixel) * channels + k.

#pragma once

#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))
#define RESTRICT __restrict__

namespace {

// Without OpenMP all is one thread's. With it the threads are those that torch has waiting.
template <class Work>
void parallel(int64_t count, [[maybe_unused]] int threads, Work work) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < count; ++i) work(i);
}

using float32 = float;

struct bfloat16 {
  uint16_t bits;
};

INLINE float widen(float value) { return value; }

INLINE float widen(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

INLINE void narrow(float& out, float value) { out = value; }

INLINE void narrow(bfloat16& out, float value) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

}  // namespace
