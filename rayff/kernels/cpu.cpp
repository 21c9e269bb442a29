// What torch has no kernel for: the pointwise part of a local step in one visit to memory, and
// the transforms of Winograd's convolution. Plain C++17 behind a C interface, so that compiling
// takes seconds and needs no headers but the compiler's own; with vectors that are written out or
// asked for (omp simd), since a search for more takes a compiler four times as long.
//
// Images are channels-last: element (b, pixel, k) lies at (b * pixels + pixel) * channels + k.
// No result depends on the number of threads: each image, and each tile, is one thread's.

#include "cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define INDEPENDENT _Pragma("omp simd")  // no turn of the loop needs what another one wrote

namespace {

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

// h = dropout(relu(y)) without its scale. Neither fmax nor a choice by `kept`: a NaN must come
// through, and the loops below must become vector code.
template <bool DROPOUT, class T>
INLINE float activation(T y, float kept) {
  const float value = widen(y);
  const float h = value < 0.0f ? 0.0f : value;
  return DROPOUT ? h * kept : h;
}

// 1 where the byte says that an element is kept, else 0; a loop of its own is vector code
INLINE void unpack(const uint8_t* RESTRICT bytes, uint8_t dropped, int64_t count,
                   float* RESTRICT kept) {
  INDEPENDENT
  for (int64_t e = 0; e < count; ++e) kept[e] = bytes[e] >= dropped ? 1.0f : 0.0f;
}

// numpy's PCG64DXSM (O'Neill's generator with 128 bits of state), eight random bytes a word; it can
// jump to any of them.
struct Stream {
  using uint128 = unsigned __int128;
  static constexpr uint64_t MULTIPLIER = 0xda942042e4dd58b5;
  uint128 state, increment;

  uint64_t next() {
    uint64_t high = static_cast<uint64_t>(state >> 64);
    const uint64_t low = static_cast<uint64_t>(state) | 1;
    state = state * MULTIPLIER + increment;
    high ^= high >> 32;
    high *= MULTIPLIER;
    high ^= high >> 48;
    return high * low;
  }

  void skip(uint64_t words) {  // s -> a s + c as often as there are words, doubled bit by bit
    uint128 a = MULTIPLIER, c = increment;
    for (; words; words >>= 1) {
      if (words & 1) state = a * state + c;
      c += a * c;
      a *= a;
    }
  }
};

// Returns where the bytes of `count` elements from `first` on begin, in the memory of `words`.
INLINE const uint8_t* draw(Stream stream, uint64_t first, int64_t count,
                           std::vector<uint64_t>& words) {
  words.resize((first % 8 + count + 7) / 8);
  stream.skip(first / 8);
  for (uint64_t& word : words) word = stream.next();
  return reinterpret_cast<const uint8_t*>(words.data()) + first % 8;
}

// ---- the pointwise part ------------------------------------------------------------------------

// One image, which stays in the cache: (1) the mean of each group, (2) its variance, (3) loss and
// the coefficients of each group, (4) features and gradient. It goes by stretches of a few pixels,
// as many as end where a vector does; what belongs to a channel is there for each of them.
template <bool DROPOUT, bool LEARN, class T>
void image_pointwise(const T* y, const uint8_t* bytes, uint8_t dropped, int64_t pixels,
                     int channels, int classes, int64_t label, float loss_scale, float epsilon,
                     T* features, T* gradient, float* goodness, float* loss) {
  const int width = channels / classes;
  const double n = static_cast<double>(pixels) * width;
  const double scale = DROPOUT ? 256.0 / (256 - dropped) : 1.0;
  const int64_t all = pixels * channels;
  const int64_t stretch = std::min<int64_t>(std::lcm(channels, 32), all);
  std::vector<int> group(stretch);  // of each element; divisions would take as long as the rest
  for (int64_t e = 0; e < stretch;)
    for (int c = 0; c < classes; ++c)
      for (int k = 0; k < width; ++k) group[e++] = c;
  std::vector<float> by_element(5 * stretch);
  float* RESTRICT kept = by_element.data();
  float* RESTRICT center = kept + stretch;  // the group's mean of h before its scale
  float* RESTRICT slope = center + stretch;
  float* RESTRICT coefficient = slope + stretch;
  float* RESTRICT few = coefficient + stretch;  // zero wherever group_means begins
  // h of all elements, found in (1) and read by (2) and (4); fresh pages would cost more than it
  static thread_local std::vector<float> room;
  if (static_cast<int64_t>(room.size()) < all) room.resize(all);
  float* RESTRICT h = room.data();

  auto each_stretch = [&](auto visit) {
    for (int64_t first = 0; first < all; first += stretch)
      visit(first, std::min(stretch, all - first));
  };

  // Means of term(element, its place in the stretch) by group: floats over a few stretches, doubles
  // over all.
  auto group_means = [&](auto prepare, auto term) {
    constexpr int FEW = 32;
    std::vector<double> sums(stretch, 0.0), means(classes, 0.0);
    int waiting = 0;
    auto flush = [&] {
      for (int64_t e = 0; e < stretch; ++e) sums[e] += few[e];
      std::fill(few, few + stretch, 0.0f);
      waiting = 0;
    };
    each_stretch([&](int64_t first, int64_t count) {
      prepare(first, count);
      INDEPENDENT
      for (int64_t e = 0; e < count; ++e) few[e] += term(first + e, e);
      if (++waiting == FEW) flush();
    });
    flush();
    for (int64_t e = 0; e < stretch; ++e) means[group[e]] += sums[e];
    for (double& each : means) each /= n;
    return means;
  };

  // (1)
  const std::vector<double> mean = group_means(
      [=](int64_t first, int64_t count) {
        if constexpr (DROPOUT) unpack(bytes + first, dropped, count, kept);
      },
      [=](int64_t at, int64_t e) { return h[at] = activation<DROPOUT>(y[at], kept[e]); });
  for (int64_t e = 0; e < stretch; ++e) center[e] = static_cast<float>(mean[group[e]]);

  // (2) around the mean, since the squares of what hardly varies would cancel
  const std::vector<double> variance = group_means(
      [](int64_t, int64_t) {},
      [=](int64_t at, int64_t e) { return (h[at] - center[e]) * (h[at] - center[e]); });

  // (3)
  double largest = -INFINITY, total = 0.0;
  for (int c = 0; c < classes; ++c) {
    goodness[c] = static_cast<float>(mean[c] * scale);
    if (mean[c] * scale > largest) largest = mean[c] * scale;
  }
  if constexpr (LEARN) {
    for (int c = 0; c < classes; ++c) total += std::exp(mean[c] * scale - largest);
    *loss = static_cast<float>(std::log(total) + largest - mean[label] * scale);
  }
  std::vector<float> slopes(classes), coefficients(classes);
  for (int c = 0; c < classes; ++c) {
    slopes[c] = static_cast<float>(scale / std::sqrt(variance[c] * scale * scale + epsilon));
    if constexpr (LEARN) {
      const double probability = std::exp(mean[c] * scale - largest) / total;
      coefficients[c] = static_cast<float>((probability - (c == label)) * loss_scale * scale / n);
    }
  }
  for (int64_t e = 0; e < stretch; ++e) {
    slope[e] = slopes[group[e]];
    coefficient[e] = coefficients[group[e]];
  }

  // (4)
  each_stretch([&](int64_t first, int64_t count) {
    T* RESTRICT feature = features + first;
    T* RESTRICT steep = LEARN ? gradient + first : nullptr;
    const float* RESTRICT from = h + first;
    INDEPENDENT
    for (int64_t e = 0; e < count; ++e) {
      narrow(feature[e], (from[e] - center[e]) * slope[e]);
      if constexpr (LEARN) narrow(steep[e], from[e] > 0.0f ? coefficient[e] : 0.0f);
    }
  });
}

// Dropout's random bytes come from a stream: state and increment, high and low half of each, and
// the element at which the first image begins.
template <class T>
void pointwise(const T* y, const uint64_t* stream, uint8_t dropped, const int64_t* labels,
               int64_t images, int64_t pixels, int channels, int classes, float loss_scale,
               float epsilon, T* features, T* gradient, float* goodness, float* losses,
               int threads) {
  parallel(images, threads, [=](int64_t b) {
    const int64_t each = pixels * channels, at = b * each;
    static thread_local std::vector<uint64_t> words;
    const uint8_t* drawn = nullptr;
    if (stream) {
      const auto whole = [=](int i) { return Stream::uint128{stream[i]} << 64 | stream[i + 1]; };
      drawn = draw({whole(0), whole(2)}, stream[4] + at, each, words);
    }
    auto run = [&](auto dropout, auto learn) {
      image_pointwise<decltype(dropout)::value, decltype(learn)::value>(
          y + at, drawn, dropped, pixels, channels, classes, labels ? labels[b] : 0, loss_scale,
          epsilon, features + at, gradient ? gradient + at : nullptr, goodness + b * classes,
          losses ? losses + b : nullptr);
    };
    using std::true_type, std::false_type;
    if (labels && drawn) run(true_type{}, true_type{});
    else if (labels) run(false_type{}, true_type{});
    else run(false_type{}, false_type{});
  });
}

// ---- pooled statistics and their gradient ---------------------------------------------------------
//
// A map of height x width pixels is divided into cells x cells equal cells. What belongs to a
// channel or to a cell is spread over the elements of one row of the map, so that all loops below
// run over contiguous memory.

// Sums of the rows of a band of cells, (width * channels), into those of its cells.
INLINE void add_to_cells(const float* RESTRICT row, int width, int channels, int cells,
                         double* RESTRICT sums) {
  const int side = width / cells;
  for (int x = 0; x < width; ++x) {
    double* RESTRICT sum = sums + x / side * channels;
    const float* RESTRICT from = row + static_cast<int64_t>(x) * channels;
    INDEPENDENT
    for (int k = 0; k < channels; ++k) sum[k] += from[k];
  }
}

// One image: (1) the means of each cell, and of the squares, written where wanted; dropout's zeros
// go into y. (2) The variance of each group around its mean. (3) The normalised features.
template <bool DROPOUT, class T>
void image_pooled(T* y, const uint8_t* bytes, uint8_t dropped, int height, int width, int channels,
                  int groups, int cells, float epsilon, T* features, float* means,
                  float* squares) {
  const double scale = DROPOUT ? 256.0 / (256 - dropped) : 1.0;
  const int64_t row = static_cast<int64_t>(width) * channels, all = height * row;
  static thread_local std::vector<float> room;
  if (static_cast<int64_t>(room.size()) < all + 5 * row) room.resize(all + 5 * row);
  float* RESTRICT h = room.data();
  float* RESTRICT kept = h + all;
  float* RESTRICT sum = kept + row;
  float* RESTRICT square = sum + row;
  float* RESTRICT center = square + row;  // the group's mean of h before its scale
  float* RESTRICT slope = center + row;
  std::vector<double> by_channel(channels, 0.0), sums(cells * channels);

  // (1)
  const int band = height / cells;
  const double pixels = static_cast<double>(band) * (width / cells);
  for (int top = 0; top < cells; ++top) {
    std::fill(sum, sum + row, 0.0f);
    std::fill(square, square + row, 0.0f);
    for (int r = top * band; r < (top + 1) * band; ++r) {
      const int64_t first = r * row;
      if constexpr (DROPOUT) unpack(bytes + first, dropped, row, kept);
      INDEPENDENT
      for (int64_t e = 0; e < row; ++e) {
        const float value = activation<DROPOUT>(y[first + e], DROPOUT ? kept[e] : 1.0f);
        h[first + e] = value;
        sum[e] += value;
        square[e] += value * value;
        if constexpr (DROPOUT) narrow(y[first + e], widen(y[first + e]) * kept[e]);
      }
    }
    const int64_t out = static_cast<int64_t>(top) * cells * channels;
    std::fill(sums.begin(), sums.end(), 0.0);
    add_to_cells(sum, width, channels, cells, sums.data());
    for (int e = 0; e < cells * channels; ++e) {
      by_channel[e % channels] += sums[e];
      means[out + e] = static_cast<float>(sums[e] / pixels * scale);
    }
    if (!squares) continue;
    std::fill(sums.begin(), sums.end(), 0.0);
    add_to_cells(square, width, channels, cells, sums.data());
    for (int e = 0; e < cells * channels; ++e)
      squares[out + e] = static_cast<float>(sums[e] / pixels * scale * scale);
  }

  // (2) around the mean, since the squares of what hardly varies would cancel
  const int members = channels / groups;
  const double n = static_cast<double>(height) * width * members;
  std::vector<double> mean(groups, 0.0), variance(groups, 0.0);
  for (int k = 0; k < channels; ++k) mean[k / members] += by_channel[k];
  for (double& each : mean) each /= n;
  for (int x = 0; x < width; ++x)
    for (int k = 0; k < channels; ++k)
      center[static_cast<int64_t>(x) * channels + k] = static_cast<float>(mean[k / members]);
  std::fill(by_channel.begin(), by_channel.end(), 0.0);
  constexpr int FEW = 32;
  for (int first = 0; first < height; first += FEW) {
    std::fill(square, square + row, 0.0f);
    for (int r = first; r < std::min(first + FEW, height); ++r) {
      const float* RESTRICT from = h + r * row;
      INDEPENDENT
      for (int64_t e = 0; e < row; ++e) square[e] += (from[e] - center[e]) * (from[e] - center[e]);
    }
    add_to_cells(square, width, channels, 1, by_channel.data());
  }
  for (int k = 0; k < channels; ++k) variance[k / members] += by_channel[k] / n;

  // (3)
  for (int x = 0; x < width; ++x)
    for (int k = 0; k < channels; ++k)
      slope[static_cast<int64_t>(x) * channels + k] =
          static_cast<float>(scale / std::sqrt(variance[k / members] * scale * scale + epsilon));
  for (int r = 0; r < height; ++r) {
    const float* RESTRICT from = h + r * row;
    T* RESTRICT feature = features + r * row;
    INDEPENDENT
    for (int64_t e = 0; e < row; ++e) narrow(feature[e], (from[e] - center[e]) * slope[e]);
  }
}

template <class T>
void pooled(T* y, const uint64_t* stream, uint8_t dropped, int64_t images, int height, int width,
            int channels, int groups, int cells, float epsilon, T* features, float* means,
            float* squares, int threads) {
  parallel(images, threads, [=](int64_t b) {
    const int64_t each = static_cast<int64_t>(height) * width * channels, at = b * each;
    const int64_t pooled_at = b * cells * cells * channels;
    static thread_local std::vector<uint64_t> words;
    const uint8_t* drawn = nullptr;
    if (stream) {
      const auto whole = [=](int i) { return Stream::uint128{stream[i]} << 64 | stream[i + 1]; };
      drawn = draw({whole(0), whole(2)}, stream[4] + at, each, words);
    }
    const auto run = drawn ? image_pooled<true, T> : image_pooled<false, T>;
    run(y + at, drawn, dropped, height, width, channels, groups, cells, epsilon, features + at,
        means + pooled_at, squares ? squares + pooled_at : nullptr);
  });
}

// y becomes base + slope * y where y > 0 and 0 elsewhere; base and slope are those of its cell.
template <class T>
void pooled_gradient(T* y, int64_t images, int height, int width, int channels, int cells,
                     const float* base, const float* slope, int threads) {
  parallel(images, threads, [=](int64_t b) {
    const int64_t row = static_cast<int64_t>(width) * channels;
    const int band = height / cells, side = width / cells;
    static thread_local std::vector<float> room;
    if (static_cast<int64_t>(room.size()) < 2 * row) room.resize(2 * row);
    float* RESTRICT bases = room.data();
    float* RESTRICT slopes = bases + row;
    for (int top = 0; top < cells; ++top) {
      for (int x = 0; x < width; ++x) {
        const int64_t from = ((b * cells + top) * cells + x / side) * channels;
        std::copy_n(base + from, channels, bases + static_cast<int64_t>(x) * channels);
        if (slope) std::copy_n(slope + from, channels, slopes + static_cast<int64_t>(x) * channels);
      }
      for (int r = top * band; r < (top + 1) * band; ++r) {
        T* RESTRICT steep = y + (b * height + r) * row;
        if (slope) {
          INDEPENDENT
          for (int64_t e = 0; e < row; ++e) {
            const float value = widen(steep[e]);
            narrow(steep[e], value > 0.0f ? bases[e] + slopes[e] * value : 0.0f);
          }
        } else {
          INDEPENDENT
          for (int64_t e = 0; e < row; ++e)
            narrow(steep[e], widen(steep[e]) > 0.0f ? bases[e] : 0.0f);
        }
      }
    }
  });
}

// ---- Winograd's convolution (Lavin and Gray, 2016) ---------------------------------------------
//
// F(M, R): M x M outputs of an R x R filter from N x N inputs, N = M + R - 1, by N x N products
// in place of (M R)^2. The matrices follow from N - 1 points and infinity (Toom-Cook):
//   Bt[i][j]  coefficient of x^j in the product of (x - p_l) over l != i; last row over all l
//   At[i][j]  p_j^i; last column zero but for the last row
//   G[i][j]   p_i^j over the product of (p_i - p_l) over l != i; last row zero but for the last
// The points are those among fractions of few bits whose rounding errors grow least (Barabasz et
// al., 2020): half as much as with 0, 1, -1, 2, -2 for N = 6.

constexpr double point(int n, int l) {
  constexpr double points[][7] = {
      {0.625, -0.625}, {0, 1, -1}, {0.375, -0.375, 1.25, -1.25}, {0, 0.625, -0.625, 1.5, -1.5},
      {},              {0, 1, -1, 2, -2, 0.5, -0.5}};
  return points[n - 3][l];
}

template <int OUTPUTS, int FILTER>
struct Winograd {
  static constexpr int M = OUTPUTS, R = FILTER, N = M + R - 1;

  static constexpr float bt(int i, int j) {
    double polynomial[N + 1] = {1};
    int degree = 0;
    for (int l = 0; l < N - 1; ++l) {
      if (l == i) continue;
      ++degree;
      for (int d = degree; d > 0; --d)
        polynomial[d] = polynomial[d - 1] - point(N, l) * polynomial[d];
      polynomial[0] *= -point(N, l);
    }
    return static_cast<float>(j > degree ? 0.0 : polynomial[j]);
  }

  static constexpr float at(int i, int j) {
    if (j == N - 1) return i == M - 1 ? 1.0f : 0.0f;
    double power = 1;
    for (int d = 0; d < i; ++d) power *= point(N, j);
    return static_cast<float>(power);
  }

  static constexpr float g(int i, int j) {
    if (i == N - 1) return j == R - 1 ? 1.0f : 0.0f;
    double value = 1;
    for (int d = 0; d < j; ++d) value *= point(N, i);
    for (int l = 0; l < N - 1; ++l)
      if (l != i) value /= point(N, i) - point(N, l);
    return static_cast<float>(value);
  }

  struct Input {  // N x N <- N x N
    static constexpr int ROWS = N, COLUMNS = N;
    static constexpr float entry(int i, int j) { return bt(i, j); }
  };
  struct Output {  // M x M <- N x N
    static constexpr int ROWS = M, COLUMNS = N;
    static constexpr float entry(int i, int j) { return at(i, j); }
  };
  struct Gradient {  // N x N <- M x M
    static constexpr int ROWS = N, COLUMNS = M;
    static constexpr float entry(int i, int j) { return at(j, i); }
  };
  struct Filter {  // N x N <- R x R
    static constexpr int ROWS = N, COLUMNS = R;
    static constexpr float entry(int i, int j) { return g(i, j); }
  };
  struct FilterGradient {  // R x R <- N x N
    static constexpr int ROWS = R, COLUMNS = N;
    static constexpr float entry(int i, int j) { return g(j, i); }
  };
};

constexpr int LANES = 16;  // channels at a time
template <class T>
using Vector __attribute__((vector_size(LANES * sizeof(T)))) = T;
using Lane = Vector<float>;

template <class Matrix, int I, int... J>
INLINE void product_row(Lane* out, int out_stride, const Lane* in, int in_stride,
                        std::integer_sequence<int, J...>) {
  Lane sum = {};
  auto add = [&](auto column) {
    constexpr int j = decltype(column)::value;
    constexpr float factor = Matrix::entry(I, j);
    if constexpr (factor != 0.0f) sum += factor * in[j * in_stride];
  };
  (add(std::integral_constant<int, J>{}), ...);
  out[I * out_stride] = sum;
}

template <class Matrix, int... I>
INLINE void product(Lane* out, int out_stride, const Lane* in, int in_stride,
                    std::integer_sequence<int, I...>) {
  (product_row<Matrix, I>(out, out_stride, in, in_stride,
                          std::make_integer_sequence<int, Matrix::COLUMNS>{}),
   ...);
}

// out = matrix in matrix^T, for LANES channels side by side
template <class Matrix>
INLINE void transform(Lane* out, const Lane* in) {
  constexpr int rows = Matrix::ROWS, columns = Matrix::COLUMNS;
  constexpr auto all = std::make_integer_sequence<int, rows>{};
  Lane half[rows * columns];
  for (int j = 0; j < columns; ++j) product<Matrix>(half + j, columns, in + j, columns, all);
  for (int i = 0; i < rows; ++i) product<Matrix>(out + i * rows, 1, half + i * columns, 1, all);
}

INLINE void load_lane(Lane& lane, const float* from) { std::memcpy(&lane, from, sizeof lane); }

INLINE void load_lane(Lane& lane, const bfloat16* from) {
  Vector<uint16_t> halves;
  std::memcpy(&halves, from, sizeof halves);
  const Vector<uint32_t> bits = __builtin_convertvector(halves, Vector<uint32_t>) << 16;
  std::memcpy(&lane, &bits, sizeof lane);
}

template <class T>
INLINE void load(Lane& lane, const T* from, int count) {
  if (count == LANES) return load_lane(lane, from);
  lane = Lane{};
  for (int l = 0; l < count; ++l) lane[l] = widen(from[l]);
}

INLINE void store_lane(float* to, const Lane& lane) { std::memcpy(to, &lane, sizeof lane); }

INLINE void store_lane(bfloat16* to, const Lane& lane) {
#ifdef __AVX512BF16__
  const __m256bh narrowed = _mm512_cvtneps_pbh(reinterpret_cast<const __m512&>(lane));
  std::memcpy(to, &narrowed, sizeof narrowed);
#else
  for (int l = 0; l < LANES; ++l) narrow(to[l], lane[l]);
#endif
}

template <class T>
INLINE void store(T* to, const Lane& lane, int count) {
  if (count == LANES) return store_lane(to, lane);
  for (int l = 0; l < count; ++l) narrow(to[l], lane[l]);
}

// Calls visit(tile number, image, top pixel row, left pixel column, channel, channels) for every
// tile and every LANES channels of square images.
template <int M, class Visit>
void each_tile(int64_t images, int size, int channels, int threads, Visit visit) {
  const int across = size / M;
  parallel(images * across, threads, [=](int64_t row) {
    for (int column = 0; column < across; ++column)
      for (int k = 0; k < channels; k += LANES)
        visit(row * across + column, row / across, static_cast<int>(row % across) * M, column * M,
              k, channels - k < LANES ? channels - k : LANES);
  });
}

// images (B, S * STRIDE, S * STRIDE, K) -> tiles (N * N, B * (S / M)^2, STRIDE^2 * K), the zeros of
// the padding included. A stride splits the images into phases, whose channels lie side by side.
template <class W, int STRIDE, class From, class To>
void input_transform(const From* images, To* tiles, int64_t count, int size, int channels,
                     int threads) {
  const int64_t all = STRIDE * STRIDE * channels;
  const int64_t stride = count * (size / W::M) * (size / W::M) * all;
  each_tile<W::M>(count, size, channels, threads,
                  [=](int64_t t, int64_t b, int top, int left, int k, int n) {
    for (int phase = 0; phase < STRIDE * STRIDE; ++phase) {
      Lane in[W::N * W::N], out[W::N * W::N];
      for (int i = 0; i < W::N; ++i) {
        for (int j = 0; j < W::N; ++j) {
          const int r = top + i - W::R / 2, c = left + j - W::R / 2;
          const int64_t row = b * size * STRIDE + r * STRIDE + phase / STRIDE;
          const int64_t at = row * size * STRIDE + c * STRIDE + phase % STRIDE;
          if (r < 0 || r >= size || c < 0 || c >= size)
            in[i * W::N + j] = Lane{};
          else
            load(in[i * W::N + j], images + at * channels + k, n);
        }
      }
      transform<typename W::Input>(out, in);
      To* to = tiles + t * all + phase * channels + k;
      for (int e = 0; e < W::N * W::N; ++e) store(to + e * stride, out[e], n);
    }
  });
}

// tiles (N * N, B * (S / M)^2, K) -> images (B, S, S, K)
template <class W, class From, class To>
void output_transform(const From* tiles, To* images, int64_t count, int size, int channels,
                      int threads) {
  const int64_t stride = count * (size / W::M) * (size / W::M) * channels;
  each_tile<W::M>(count, size, channels, threads,
                  [=](int64_t t, int64_t b, int top, int left, int k, int n) {
    Lane in[W::N * W::N], out[W::M * W::M];
    for (int e = 0; e < W::N * W::N; ++e) load(in[e], tiles + e * stride + t * channels + k, n);
    transform<typename W::Output>(out, in);
    for (int i = 0; i < W::M; ++i)
      for (int j = 0; j < W::M; ++j)
        store(images + ((b * size + top + i) * size + left + j) * channels + k, out[i * W::M + j],
              n);
  });
}

// gradient of the outputs (B, S, S, K) -> tiles (N * N, B * (S / M)^2, K)
template <class W, class From, class To>
void gradient_transform(const From* images, To* tiles, int64_t count, int size, int channels,
                        int threads) {
  const int64_t stride = count * (size / W::M) * (size / W::M) * channels;
  each_tile<W::M>(count, size, channels, threads,
                  [=](int64_t t, int64_t b, int top, int left, int k, int n) {
    Lane in[W::M * W::M], out[W::N * W::N];
    for (int i = 0; i < W::M; ++i)
      for (int j = 0; j < W::M; ++j)
        load(in[i * W::M + j], images + ((b * size + top + i) * size + left + j) * channels + k,
             n);
    transform<typename W::Gradient>(out, in);
    for (int e = 0; e < W::N * W::N; ++e) store(tiles + e * stride + t * channels + k, out[e], n);
  });
}

// filters (F, R, R, K) -> (N * N, F, K), a filter's rows at a time: so many places in turn, a few
// bytes each, would wait for memory
template <class W, class From, class To>
void filter_transform(const From* filters, To* places, int64_t count, int, int channels,
                      int threads) {
  parallel(count, threads, [=](int64_t f) {
    std::vector<To> rows(W::N * W::N * channels);
    for (int k = 0; k < channels; k += LANES) {
      const int n = channels - k < LANES ? channels - k : LANES;
      Lane in[W::R * W::R], out[W::N * W::N];
      for (int e = 0; e < W::R * W::R; ++e)
        load(in[e], filters + (f * W::R * W::R + e) * channels + k, n);
      transform<typename W::Filter>(out, in);
      for (int e = 0; e < W::N * W::N; ++e) store(rows.data() + e * channels + k, out[e], n);
    }
    for (int e = 0; e < W::N * W::N; ++e)
      std::copy_n(rows.data() + e * channels, channels, places + (e * count + f) * channels);
  });
}

// gradient of the places (N * N, F, K) -> of the filters (F, R, R, K)
template <class W, class From, class To>
void filter_gradient_transform(const From* places, To* filters, int64_t count, int,
                               int channels, int threads) {
  parallel(count, threads, [=](int64_t f) {
    std::vector<From> rows(W::N * W::N * channels);
    for (int e = 0; e < W::N * W::N; ++e)
      std::copy_n(places + (e * count + f) * channels, channels, rows.data() + e * channels);
    for (int k = 0; k < channels; k += LANES) {
      const int n = channels - k < LANES ? channels - k : LANES;
      Lane in[W::N * W::N], out[W::R * W::R];
      for (int e = 0; e < W::N * W::N; ++e) load(in[e], rows.data() + e * channels + k, n);
      transform<typename W::FilterGradient>(out, in);
      for (int e = 0; e < W::R * W::R; ++e)
        store(filters + (f * W::R * W::R + e) * channels + k, out[e], n);
    }
  });
}

}  // namespace

// All whole numbers are int64_t here, but for the number of threads, which comes last.
extern "C" {

#define POINTWISE(NAME, T)                                                                  \
  void NAME(const T* y, const uint64_t* stream, int64_t dropped, const int64_t* labels,     \
            int64_t images, int64_t pixels, int64_t channels, int64_t classes,              \
            float loss_scale, float epsilon, T* features, T* gradient, float* goodness,     \
            float* losses, int threads) {                                                   \
    pointwise<T>(y, stream, static_cast<uint8_t>(dropped), labels, images, pixels,          \
                 static_cast<int>(channels), static_cast<int>(classes), loss_scale,         \
                 epsilon, features, gradient, goodness, losses, threads);                   \
  }
POINTWISE(pointwise_float32, float)
POINTWISE(pointwise_bfloat16, bfloat16)

#define POOLED(SUFFIX, T)                                                                   \
  void pooled_##SUFFIX(T* y, const uint64_t* stream, int64_t dropped, int64_t images,       \
                       int64_t height, int64_t width, int64_t channels, int64_t groups,     \
                       int64_t cells, float epsilon, T* features, float* means,             \
                       float* squares, int threads) {                                       \
    pooled<T>(y, stream, static_cast<uint8_t>(dropped), images, static_cast<int>(height),   \
              static_cast<int>(width), static_cast<int>(channels),                          \
              static_cast<int>(groups), static_cast<int>(cells), epsilon, features, means,  \
              squares, threads);                                                            \
  }                                                                                         \
  void pooled_gradient_##SUFFIX(T* y, int64_t images, int64_t height, int64_t width,        \
                                int64_t channels, int64_t cells, const float* base,         \
                                const float* slope, int threads) {                          \
    pooled_gradient<T>(y, images, static_cast<int>(height), static_cast<int>(width),        \
                       static_cast<int>(channels), static_cast<int>(cells), base, slope,    \
                       threads);                                                            \
  }
POOLED(float32, float)
POOLED(bfloat16, bfloat16)

#define TRANSFORM(NAME, KIND, FROM, TO, ...)                                                \
  void NAME##_##FROM##_##TO(const FROM* from, TO* to, int64_t count, int64_t size,          \
                            int64_t channels, int threads) {                                \
    KIND<__VA_ARGS__>(from, to, count, static_cast<int>(size), static_cast<int>(channels),  \
                      threads);                                                             \
  }
#define TRANSFORMS(M, R, STRIDE, IMAGE, TILE)                                               \
  TRANSFORM(input_##M##_##R, input_transform, IMAGE, TILE, Winograd<M, R>, STRIDE)          \
  TRANSFORM(output_##M##_##R, output_transform, TILE, IMAGE, Winograd<M, R>)                \
  TRANSFORM(gradient_##M##_##R, gradient_transform, IMAGE, TILE, Winograd<M, R>)            \
  TRANSFORM(filter_##M##_##R, filter_transform, IMAGE, TILE, Winograd<M, R>)
#define ALL_FORMATS(M, R, STRIDE)                                                           \
  TRANSFORMS(M, R, STRIDE, float32, float32)                                                \
  TRANSFORMS(M, R, STRIDE, bfloat16, float32)                                               \
  TRANSFORMS(M, R, STRIDE, bfloat16, bfloat16)                                              \
  TRANSFORM(filter_gradient_##M##_##R, filter_gradient_transform, float32, float32,         \
            Winograd<M, R>)                                                                 \
  TRANSFORM(filter_gradient_##M##_##R, filter_gradient_transform, bfloat16, float32,        \
            Winograd<M, R>)
ALL_FORMATS(2, 2, 2)  // a 3x3 kernel with stride 2 is a 2x2 kernel over the four phases
ALL_FORMATS(4, 2, 2)
ALL_FORMATS(2, 3, 1)
ALL_FORMATS(4, 3, 1)
ALL_FORMATS(2, 5, 1)
ALL_FORMATS(4, 5, 1)
}
