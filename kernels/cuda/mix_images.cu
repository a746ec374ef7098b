// mix_images and mix_image_batch. The grid has as many blocks as the device can run at the same time, and they share
// the batch evenly. A block first draws or reads all its samples, and then mixes its part of their images.
#include "crops.cuh"

namespace spurmix::cuda {
namespace {

// How a kernel mixes images: see choose_path().
enum class Path { vectors3, vectors4, planes, pairs, crops, unaligned_crops, bytes };

template <Path kPath>
constexpr bool kHasTaps = kPath == Path::pairs || kPath == Path::crops || kPath == Path::unaligned_crops;

// Computes the taps of output rows [begin, end) and, if `columns`, those of all columns. All threads must call this
// function, and then synchronize.
__device__ __forceinline__ void set_taps(const MixImages& m, const Sample& s, int begin, int end, Path path,
                                         bool columns, ColumnTap* column, RowTap* row) {
  const bool crops = path != Path::pairs;
  const int line = m.width * 3;
  for (int i = static_cast<int>(threadIdx.x); columns && i < 2 * m.out_width; i += static_cast<int>(blockDim.x)) {
    const int side = i / m.out_width, x = i - side * m.out_width, from = s.flip[side] ? m.out_width - 1 - x : x;
    Tap tap = crops ? axis_tap(s.box[side][1], s.box[side][3], m.width, m.out_width, from) : Tap{from, from, 0.0f};
    if (path == Path::crops && tap.i0 == m.width - 1) tap = {tap.i0 - 1, tap.i0, 1.0f};  // has a right neighbor
    column[i] = {tap.i0 * 3, tap.f};
  }
  for (int i = static_cast<int>(threadIdx.x); i < 2 * (end - begin); i += static_cast<int>(blockDim.x)) {
    const int side = i & 1, y = begin + i / 2;
    const Tap tap = crops ? axis_tap(s.box[side][0], s.box[side][2], m.height, m.out_height, y) : Tap{y, y, 0.0f};
    row[i] = {tap.i0 * line, tap.i1 * line, tap.f};
  }
}

constexpr int threads_of(Path path) { return path == Path::crops ? kCropThreads : kThreads; }

// Minimum number of resident blocks per multiprocessor, which limits the registers of a thread. It is the largest
// number with which no kernel spills registers.
constexpr int min_blocks(Path path, bool draws) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  const bool fewer = !draws;
#else
  const bool fewer = false;
#endif
  switch (path) {
    case Path::vectors3: return draws ? 4 : 5;
    case Path::planes: return 2;
    case Path::crops: return 2;
    case Path::bytes: return fewer ? 2 : 3;
    default: return fewer ? 3 : 4;
  }
}

// `units` is the number of units of a sample: vectors, runs of pixels or rows, depending on the path.
template <Path kPath, Format kFormat, bool kDraws>
__global__ void __launch_bounds__(threads_of(kPath), min_blocks(kPath, kDraws))
    mix_images_kernel(MixImages m, int units) {
  __shared__ Shared shared;
  __shared__ RowTap row[kHasTaps<kPath> ? kTapRows * 2 : 1];
  __shared__ uint4 stage[kPath == Path::crops ? 2 * kWarps * 3 * kStripWidth * sizeof(TypeOf<kFormat>) / 16 : 1];
  ColumnTap* column = reinterpret_cast<ColumnTap*>(dynamic_shared());
  const bool crops = kDraws ? m.crop.enabled : m.boxes != nullptr;
  if constexpr (kDraws) {
    if (blockIdx.x == 0) check_normalization(m);
    cache_tables(m.sequence, shared.cached_words);
    __syncthreads();
    if (threadIdx.x == 0) shared.tables_valid = open_tables(m.sequence, shared.cached_words, &shared.tables);
    __syncthreads();
  }
  const int64_t total = m.batch * units, share = (total + gridDim.x - 1) / gridDim.x;
  int64_t unit = share * blockIdx.x;
  const int64_t stop = unit + share < total ? unit + share : total;
  while (unit < stop) {
    const int64_t first = unit / units, left = (stop - 1) / units - first + 1;
    const int count = left < kBlockSamples ? static_cast<int>(left) : kBlockSamples;
    const bool skip_first = unit != first * units;
    if constexpr (kDraws) {
      draw_samples(m, first, count, &shared);
    } else {
      read_samples(m, first, count, &shared);
    }
    __syncthreads();
    if constexpr (kDraws) write_samples(m, first, count, skip_first, shared);
    for (int i = 0; i < count; ++i) {
      const Sample& s = shared.sample[i];
      const int64_t at = first + i;
      const int begin = static_cast<int>(unit - at * units);
      const int end = stop - at * units < units ? static_cast<int>(stop - at * units) : units;
      if constexpr (kPath == Path::vectors3) mix_vectors<kFormat, 3>(m, s, at, begin, end);
      if constexpr (kPath == Path::vectors4) mix_vectors<kFormat, 4>(m, s, at, begin, end);
      if constexpr (kPath == Path::planes) mix_planes<kFormat>(m, s, at, begin, end);
      if constexpr (kPath == Path::bytes) mix_bytes<kFormat>(m, s, at, begin, end, crops);
      if constexpr (kHasTaps<kPath>) {
        if (!s.valid) fill_nan<kFormat>(m, at, begin, end);
        for (int from = s.valid ? begin : end; from < end; from += kTapRows) {
          const int to = min(end, from + kTapRows);
          set_taps(m, s, from, to, kPath, from == begin, column, row);
          __syncthreads();
          if constexpr (kPath == Path::crops) {
            mix_crops<kFormat>(m, s, at, from, to, column, row, reinterpret_cast<TypeOf<kFormat>*>(stage));
          } else {
            mix_pairs<kFormat, kPath == Path::unaligned_crops>(m, s, at, from, to, column, row);
          }
          __syncthreads();  // before the taps are overwritten
        }
      }
      unit = at * units + end;
    }
    __syncthreads();  // before the samples are overwritten
  }
  // Kernels that draw check at their start, others here. At the other end, the check makes registers spill.
  if (!kDraws && blockIdx.x == 0) check_normalization(m);
}

template <Path kPath, Format kFormat, bool kDraws>
int run(const MixImages& m, int units, void* stream) {
  const auto kernel = mix_images_kernel<kPath, kFormat, kDraws>;
  const size_t memory = kHasTaps<kPath> ? 2 * sizeof(ColumnTap) * static_cast<size_t>(m.out_width) : 0;
  // Every block gets at least one unit per thread, or one row.
  constexpr int kBlock = threads_of(kPath);
  const int64_t total = m.batch * units, min_units = kHasTaps<kPath> || kPath == Path::bytes ? 1 : kBlock;
  int64_t blocks = resident_blocks<mix_images_kernel<kPath, kFormat, kDraws>>(kBlock, memory);
  if (blocks > (total + min_units - 1) / min_units) blocks = (total + min_units - 1) / min_units;
  return launch(kernel, blocks, kBlock, memory, stream, m, units);
}

// Launches the fastest path for the shape, layout and alignment.
template <Format kFormat, bool kDraws>
int choose_path(const MixImages& m, void* stream) {
  const bool crops = kDraws ? m.crop.enabled : m.boxes != nullptr;
  const bool flips = kDraws ? m.crop.flip : m.flips != nullptr;
  const int64_t pixels = int64_t{m.height} * m.width, size = pixels * m.channels;
  const auto aligned = [&](int64_t bytes) {
    return reinterpret_cast<uintptr_t>(m.images) % bytes == 0 && m.image_stride % bytes == 0 && size % bytes == 0;
  };
  const bool out_aligned = reinterpret_cast<uintptr_t>(m.out) % 32 == 0;
  if (size < int64_t{1} << 31 && out_aligned) {
    if (!crops && !flips && aligned(16)) {
      const int c = m.channels;
      if (c == 3 && m.channels_last)
        return run<Path::vectors3, kFormat, kDraws>(m, static_cast<int>(size / 16), stream);
      if (c == 1 || (m.channels_last && (c == 2 || c == 4))) {
        return run<Path::vectors4, kFormat, kDraws>(m, static_cast<int>(size / 16), stream);
      }
      if (c == 3 && pixels % 16 == 0)
        return run<Path::planes, kFormat, kDraws>(m, static_cast<int>(pixels / 16), stream);
    }
    // The column taps must fit in the 48 KB of shared memory that a block can use without opting in.
    if (m.channels == 3 && aligned(4) && m.out_width <= 2048) {
      if (crops && m.width % 4 == 0 && m.out_width <= 1024)
        return run<Path::crops, kFormat, kDraws>(m, m.out_height, stream);
      if (crops) return run<Path::unaligned_crops, kFormat, kDraws>(m, m.out_height, stream);
      return run<Path::pairs, kFormat, kDraws>(m, m.out_height, stream);
    }
  }
  return run<Path::bytes, kFormat, kDraws>(m, m.out_height, stream);
}

template <bool kDraws>
int mix(const MixImages& m, void* stream) {
  if (m.batch == 0) return 0;
  switch (m.format) {
    case Format::f32: return choose_path<Format::f32, kDraws>(m, stream);
    case Format::f16: return choose_path<Format::f16, kDraws>(m, stream);
    default: return choose_path<Format::bf16, kDraws>(m, stream);
  }
}

}  // namespace

int mix_images(const MixImages& args, void* stream) { return mix<false>(args, stream); }

int mix_image_batch(const MixImages& args, void* stream) { return mix<true>(args, stream); }

}  // namespace spurmix::cuda
