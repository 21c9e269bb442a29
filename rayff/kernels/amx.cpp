// A convolution and the gradient of its weights as matrix products by the processor's tile units
// (Intel AMX), which multiply bfloat16 and add up in float32:
//
//     y[p, k]  = sum over columns c  x[p, c] * w[k, c]      pixels p of all images
//     dw[k, c] = sum over pixels p   g[p, k] * x[p, c]      columns c = (tap row, tap, channel)
//
// The unfolded input x[p, c] is never whole: each piece of work unfolds what fits into the cache. A
// tile holds 16 rows of 64 bytes; the unit multiplies one of 16 x 32 by one whose rows are pairs,
// (32 / 2) x (16 * 2), as Intel's manual says. A block of 2 x 2 products uses all eight tiles.
// No result depends on the number of threads: pieces are cut by shape alone.

#include "cpu.h"

#if !defined(WITHOUT_AMX) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && \
    defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__linux__)
#define HAS_AMX 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#endif

#ifdef HAS_AMX
namespace {

using Bits = uint16_t;  // of a bfloat16

constexpr int64_t SIDE = 16;            // rows of a tile, and float32 in one of its rows
constexpr int64_t DEPTH = 32;           // bfloat16 in a row of a tile
constexpr int64_t BLOCK = 2 * SIDE;     // rows and columns of the product of 2 x 2 tiles
constexpr int64_t TILE = SIDE * DEPTH;  // bfloat16 of a tile
constexpr int64_t PANEL = 1280 * 1024;  // bytes of the input that a piece unfolds at a time
constexpr int64_t PAIRS = 900 * 1024;   // bytes of input and slopes that a piece packs at a time
constexpr int64_t PIECES = 16;          // of a gradient, at least where it is large enough
constexpr int64_t SLICE = 4096;         // pixels that a piece of a gradient sums, or more

constexpr int64_t blocks(int64_t count, int64_t of) { return (count + of - 1) / of; }

// Memory of a thread that is used again, since fresh pages cost as much as work.
class Room {
 public:
  ~Room() { std::free(memory_); }
  template <class T>
  T* get(int64_t count) {
    const size_t wanted = blocks(count * sizeof(T), 64) * 64;
    if (wanted > size_) {
      std::free(memory_);
      memory_ = std::aligned_alloc(64, wanted);
      if (!memory_) throw std::bad_alloc();
      size_ = wanted;
    }
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

// ---- rows in and out ---------------------------------------------------------------------------

INLINE __mmask32 first(int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }

INLINE void copy(Bits* RESTRICT to, const Bits* RESTRICT from, int64_t count) {
  for (int64_t e = 0; e < count; e += 32)
    _mm512_mask_storeu_epi16(to + e, first(count - e),
                             _mm512_maskz_loadu_epi16(first(count - e), from + e));
}

INLINE void clear(Bits* to, int64_t count) {
  for (int64_t e = 0; e < count; e += 32)
    _mm512_mask_storeu_epi16(to + e, first(count - e), _mm512_setzero_si512());
}

// How a layer reads its images.
struct Layer {
  const Bits* images;  // (B, size, size, entering)
  int64_t count, size, entering, kernel, stride;
  int64_t out = blocks(size, stride);
  int64_t pixels = count * out * out;
  int64_t columns = kernel * kernel * entering;

  // Writes columns [begin, end) of a pixel's row, zeros where they lie outside of the image.
  INLINE void unfold(int64_t pixel, int64_t begin, int64_t end, Bits* to) const {
    const int64_t image = pixel / (out * out), place = pixel % (out * out);
    const int64_t top = place / out * stride - kernel / 2;
    const int64_t left = place % out * stride - kernel / 2;
    const int64_t each = kernel * entering, width = size * entering;
    for (int64_t tap = begin / each; tap * each < end; ++tap) {
      const int64_t from = std::max(begin, tap * each), until = std::min(end, (tap + 1) * each);
      const int64_t row = top + tap;
      if (row < 0 || row >= size) {
        clear(to + from - begin, until - from);
        continue;
      }
      const int64_t shift = left * entering - tap * each;  // of a column in the image's row
      const int64_t inside = std::clamp(-shift, from, until);
      const int64_t outside = std::clamp(width - shift, from, until);
      clear(to + from - begin, inside - from);
      copy(to + inside - begin, images + (image * size + row) * width + shift + inside,
           outside - inside);
      clear(to + outside - begin, until - outside);
    }
  }
};

// ---- tiles -------------------------------------------------------------------------------------

// 16 pairs (a[i], b[i])
INLINE __m512i pairs(const Bits* a, const Bits* b, int64_t count) {
  const __mmask16 mask = count >= SIDE ? 0xffff : (1u << count) - 1;
  const auto wide = [mask](const Bits* from) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  };
  return _mm512_or_si512(wide(a), _mm512_slli_epi32(wide(b), 16));
}

// Turns 16 rows of 16 words into columns.
INLINE void transpose(__m512i* rows) {
  __m512i half[SIDE];
  for (int i = 0; i < 16; i += 2) {
    half[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    half[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      rows[i + 2 * j] = _mm512_unpacklo_epi64(half[i + j], half[i + j + 2]);
      rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(half[i + j], half[i + j + 2]);
    }
  // rows[4 a + j], quarter q: column 4 q + j of rows 4 a to 4 a + 3
  for (int j = 0; j < 4; ++j)
    for (int a = 0; a < 4; a += 2) {
      half[4 * j + a] = _mm512_shuffle_i32x4(rows[4 * a + j], rows[4 * a + 4 + j], 0x88);
      half[4 * j + a + 1] = _mm512_shuffle_i32x4(rows[4 * a + j], rows[4 * a + 4 + j], 0xdd);
    }
  // half[4 j + {0, 2}]: quarters 0 and 2 of a pair of a; half[4 j + {1, 3}]: quarters 1 and 3
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm512_shuffle_i32x4(half[4 * j], half[4 * j + 2], 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(half[4 * j], half[4 * j + 2], 0xdd);
    rows[4 + j] = _mm512_shuffle_i32x4(half[4 * j + 1], half[4 * j + 3], 0x88);
    rows[12 + j] = _mm512_shuffle_i32x4(half[4 * j + 1], half[4 * j + 3], 0xdd);
  }
}

// All eight tiles have 16 rows of 64 bytes while one of these lives.
class Tiles {
 public:
  Tiles() {
    alignas(64) struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Packed tiles lie in pairs, as the products below read them: (tiles / 2, steps, 2). Returns where
// one begins.
INLINE int64_t packed_at(int64_t tile, int64_t step, int64_t steps) {
  return ((tile / 2 * steps + step) * 2 + tile % 2) * TILE;
}

// The tiles 0 to 3 += 32 rows times 32 packed columns, over `steps` tiles of depth. Of the rows the
// pitch is in bytes; where the second 16 and the next depth begin, in elements.
INLINE void multiply(const Bits* a, int64_t pitch, int64_t second, int64_t next, const Bits* b,
                     int64_t steps) {
  for (int64_t step = 0; step < steps; ++step, a += next, b += 2 * TILE) {
    _tile_loadd(4, a, pitch);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + TILE, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + second, pitch);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

INLINE void zero_block() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// The tiles 0 to 3 from and to memory: where the second columns and rows begin, in elements, and
// the pitch in bytes.
INLINE void load_block(const float* at, int64_t right, int64_t below, int64_t pitch) {
  _tile_loadd(0, at, pitch);
  _tile_loadd(1, at + right, pitch);
  _tile_loadd(2, at + below, pitch);
  _tile_loadd(3, at + below + right, pitch);
}

INLINE void store_block(float* at, int64_t right, int64_t below, int64_t pitch) {
  _tile_stored(0, at, pitch);
  _tile_stored(1, at + right, pitch);
  _tile_stored(2, at + below, pitch);
  _tile_stored(3, at + below + right, pitch);
}

// ---- the convolution ---------------------------------------------------------------------------

// Packs filters (K, columns), K / 16 tiles in columns / 32 steps, with zeros to fill whole blocks.
void pack_filters(const Bits* filters, int64_t leaving, int64_t columns, Bits* packed,
                  int threads) {
  const int64_t steps = blocks(columns, DEPTH);
  parallel(2 * blocks(leaving, BLOCK), threads, [=](int64_t tile) {
    for (int64_t step = 0; step < steps; ++step) {
      __m512i rows[SIDE];
      for (int64_t i = 0; i < SIDE; ++i) {
        const int64_t filter = tile * SIDE + i, there = columns - step * DEPTH;
        const Bits* from = filters + filter * columns + step * DEPTH;
        rows[i] = filter < leaving ? _mm512_maskz_loadu_epi16(first(there), from)
                                   : _mm512_setzero_si512();
      }
      transpose(rows);
      std::memcpy(packed + packed_at(tile, step, steps), rows, sizeof rows);
    }
  });
}

// Writes a block of float32 (32, 32) as rows of an image, rounded.
INLINE void round_block(const float* block, int64_t rows, int64_t columns, Bits* to,
                        int64_t pitch) {
  for (int64_t i = 0; i < rows; ++i) {
    const __m512bh narrow = _mm512_cvtne2ps_pbh(_mm512_load_ps(block + i * BLOCK + SIDE),
                                                _mm512_load_ps(block + i * BLOCK));
    __m512i bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    _mm512_mask_storeu_epi16(to + i * pitch, first(columns), bits);
  }
}

void forward(const Layer& layer, const Bits* packed, int64_t leaving, Bits* y, int threads) {
  const int64_t steps = blocks(layer.columns, DEPTH), pitch = steps * DEPTH;
  const int64_t fit = PANEL / (pitch * sizeof(Bits)) / BLOCK;
  const int64_t piece = std::max<int64_t>(1, fit) * BLOCK;
  parallel(blocks(layer.pixels, piece), threads, [=](int64_t number) {
    static thread_local Room room;
    const int64_t begin = number * piece, count = std::min(piece, layer.pixels - begin);
    Bits* panel = room.get<Bits>(blocks(count, BLOCK) * BLOCK * pitch);
    for (int64_t p = 0; p < count; ++p) {
      layer.unfold(begin + p, 0, layer.columns, panel + p * pitch);
      clear(panel + p * pitch + layer.columns, pitch - layer.columns);
    }
    alignas(64) float block[BLOCK * BLOCK];
    const Tiles tiles;
    for (int64_t k = 0; k < leaving; k += BLOCK) {
      for (int64_t p = 0; p < count; p += BLOCK) {
        zero_block();
        multiply(panel + p * pitch, pitch * sizeof(Bits), SIDE * pitch, DEPTH,
                 packed + packed_at(k / SIDE, 0, steps), steps);
        store_block(block, SIDE, SIDE * BLOCK, BLOCK * sizeof(float));
        round_block(block, std::min(BLOCK, count - p), leaving - k,
                    y + (begin + p) * leaving + k, leaving);
      }
    }
  });
}

// ---- the gradient of the weights ---------------------------------------------------------------

// How the sum over pixels is cut: slices of pixels, each with a sum of its own, and groups of
// columns. Every piece reads all filters of its pixels.
struct Cut {
  int64_t slices, slice, groups, group;  // the slices in pixels, the groups in columns

  explicit Cut(const Layer& layer) {
    slices = std::clamp<int64_t>(layer.pixels / SLICE, 1, PIECES);
    slice = blocks(blocks(layer.pixels, slices), DEPTH) * DEPTH;
    slices = blocks(layer.pixels, slice);
    group = blocks(blocks(layer.columns, blocks(PIECES, slices)), BLOCK) * BLOCK;
    groups = blocks(layer.columns, group);
  }
};

// Packs columns [left, right) of 32 pixels from `pixel` on, zeros from `stop` on, as one step of
// 16 pairs of pixels; `rows` is memory for two pixels, zero behind the columns.
INLINE void pack_inputs(const Layer& layer, int64_t pixel, int64_t stop, int64_t left,
                        int64_t right, Bits* rows, Bits* packed, int64_t step, int64_t steps) {
  const int64_t tiles = 2 * blocks(right - left, BLOCK), width = tiles * SIDE;
  for (int64_t pair = 0; pair < SIDE; ++pair) {
    for (int64_t odd = 0; odd < 2; ++odd) {
      const int64_t p = pixel + 2 * pair + odd;
      if (p < stop)
        layer.unfold(p, left, right, rows + odd * width);
      else
        clear(rows + odd * width, width);
    }
    for (int64_t tile = 0; tile < tiles; ++tile)
      _mm512_store_si512(packed + packed_at(tile, step, steps) + pair * DEPTH,
                         pairs(rows + tile * SIDE, rows + width + tile * SIDE, SIDE));
  }
}

// Packs the slopes (pixels, K) of the same pixels, turned: 16 filters, each with 32 pixels.
INLINE void pack_slopes(const Bits* slopes, int64_t leaving, int64_t pixel, int64_t stop,
                        Bits* packed, int64_t step, int64_t steps) {
  for (int64_t tile = 0; tile < 2 * blocks(leaving, BLOCK); ++tile) {
    const int64_t there = std::max<int64_t>(0, leaving - tile * SIDE);
    __m512i turned[SIDE];
    for (int64_t pair = 0; pair < SIDE; ++pair) {
      const int64_t p = pixel + 2 * pair;
      const Bits* one = slopes + p * leaving + tile * SIDE;
      turned[pair] = pairs(one, one + leaving, p + 1 < stop ? there : 0);
      if (p + 1 == stop) turned[pair] = pairs(one, one, there) & _mm512_set1_epi32(0xffff);
    }
    transpose(turned);
    std::memcpy(packed + packed_at(tile, step, steps), turned, sizeof turned);
  }
}

// Sums: (slices, K / 16, columns / 16) tiles of float32 (16, 16), K and columns to whole blocks.
void weight_gradient(const Layer& layer, const Bits* slopes, int64_t leaving, float* sums,
                     float* gradient, int threads) {
  const Cut cut(layer);
  const int64_t filter_tiles = 2 * blocks(leaving, BLOCK);
  const int64_t column_tiles = 2 * blocks(layer.columns, BLOCK);
  constexpr int64_t right = SIDE * SIDE, pitch = SIDE * sizeof(float);
  const int64_t below = column_tiles * right, whole = filter_tiles * below;
  parallel(cut.slices * cut.groups, threads, [=](int64_t number) {
    static thread_local Room room;
    const int64_t start = number / cut.groups * cut.slice;
    const int64_t stop = std::min(start + cut.slice, layer.pixels);
    const int64_t left = number % cut.groups * cut.group;
    const int64_t end = std::min(left + cut.group, layer.columns);
    const int64_t tiles = 2 * blocks(end - left, BLOCK);
    float* sum = sums + number / cut.groups * whole + left / SIDE * right;

    const int64_t each = (tiles + filter_tiles) * TILE;
    const int64_t most = std::max<int64_t>(1, PAIRS / (each * sizeof(Bits)));
    const int64_t steps = std::min(most, blocks(stop - start, DEPTH));
    Bits* inputs = room.get<Bits>(steps * each + 2 * tiles * SIDE);
    Bits* outputs = inputs + steps * tiles * TILE;
    Bits* rows = outputs + steps * filter_tiles * TILE;
    clear(rows, 2 * tiles * SIDE);
    const Tiles shapes;
    for (int64_t begin = start; begin < stop; begin += steps * DEPTH) {
      const int64_t now = std::min(steps, blocks(stop - begin, DEPTH));
      for (int64_t step = 0; step < now; ++step) {
        const int64_t pixel = begin + step * DEPTH;
        pack_inputs(layer, pixel, stop, left, end, rows, inputs, step, steps);
        pack_slopes(slopes, leaving, pixel, stop, outputs, step, steps);
      }
      for (int64_t column = 0; column < tiles; column += 2) {
        for (int64_t filter = 0; filter < filter_tiles; filter += 2) {
          float* at = sum + filter * below + column * right;
          if (begin == start)
            zero_block();
          else
            load_block(at, right, below, pitch);
          multiply(outputs + packed_at(filter, 0, steps), 64, TILE, 2 * TILE,
                   inputs + packed_at(column, 0, steps), now);
          store_block(at, right, below, pitch);
        }
      }
    }
  });
  parallel(leaving, threads, [=](int64_t filter) {
    for (int64_t tile = 0; tile < blocks(layer.columns, SIDE); ++tile) {
      const int64_t at = (filter / SIDE * column_tiles + tile) * SIDE * SIDE + filter % SIDE * SIDE;
      __m512 total = _mm512_setzero_ps();
      for (int64_t slice = 0; slice < cut.slices; ++slice)
        total = _mm512_add_ps(total, _mm512_loadu_ps(sums + slice * whole + at));
      _mm512_mask_storeu_ps(gradient + filter * layer.columns + tile * SIDE,
                            static_cast<__mmask16>(first(layer.columns - tile * SIDE)), total);
    }
  });
}

}  // namespace
#endif

extern "C" {

// Asks the system for the tiles, which a process must before it uses them; 1 where it may.
int amx_permitted() {
#ifdef HAS_AMX
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return 0;
#endif
}

#ifdef HAS_AMX
// Bytes of memory that a call needs beside its result, for the larger of both kinds.
int64_t amx_room(int64_t count, int64_t size, int64_t entering, int64_t leaving, int64_t kernel,
                 int64_t stride) {
  const Layer layer{nullptr, count, size, entering, kernel, stride};
  const int64_t columns = blocks(layer.columns, BLOCK) * BLOCK;
  const int64_t elements = blocks(leaving, BLOCK) * BLOCK * columns;
  return elements * std::max<int64_t>(sizeof(Bits), Cut(layer).slices * sizeof(float));
}

// y (B, S, S, K) from images (B, size, size, K') and filters (K, R, R, K')
void amx_forward(const uint16_t* images, const uint16_t* filters, uint16_t* room, uint16_t* y,
                 int64_t count, int64_t size, int64_t entering, int64_t leaving, int64_t kernel,
                 int64_t stride, int threads) {
  const Layer layer{images, count, size, entering, kernel, stride};
  pack_filters(filters, leaving, layer.columns, room, threads);
  forward(layer, room, leaving, y, threads);
}

// The gradient of the filters (K, R, R, K'), float32, from that of y (B, S, S, K)
void amx_gradient(const uint16_t* images, const uint16_t* slopes, float* room, float* gradient,
                  int64_t count, int64_t size, int64_t entering, int64_t leaving, int64_t kernel,
                  int64_t stride, int threads) {
  const Layer layer{images, count, size, entering, kernel, stride};
  weight_gradient(layer, slopes, leaving, room, gradient, threads);
}
#endif
}
