// What the kernels share. Each file compiles for itself: nothing here has a name outside.

#pragma once

#include <cstdint>

#define INLINE inline __attribute__((always_inline))
#define RESTRICT __restrict__

namespace {

// Without OpenMP all is one thread's. With it the threads are those that torch has waiting.
template <class Work>
void parallel(int64_t count, [[maybe_unused]] int threads, Work work) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < count; ++i) work(i);
}

}  // namespace
