// mixed_cross_entropy, forward and backward, and group_counts: a warp a row, or a block where rows are long.
#include "device.cuh"

namespace spurmix::cuda {
namespace {

constexpr int kThreads = 256, kLongThreads = 1024;
constexpr int64_t kLong = 4096;  // classes from which a block takes a row

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

template <class T>
__device__ __forceinline__ T infinity() {
  return static_cast<T>(bits_float(0x7f800000u));
}

// Sixteen bytes of a row.
template <Format kFormat>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(TypeOf<kFormat>);
  TypeOf<kFormat> v[kSize];
};

template <Format kFormat>
__device__ __forceinline__ bool is_aligned(const void* base, int64_t row_stride) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && row_stride % Vector<kFormat>::kSize == 0;
}

// Calls visit(values, count, first column) for each run of a row that is this lane's, in ascending order.
template <Format kFormat, int kLanes, class Visit>
__device__ __forceinline__ void for_each_run(const TypeOf<kFormat>* row, int64_t classes, bool aligned, int lane,
                                             Visit visit) {
  using Wide = typename Element<kFormat>::Wide;
  constexpr int kSize = Vector<kFormat>::kSize;
  int64_t column = 0;
  if (aligned) {
    const int64_t vectors = classes / kSize;
#pragma unroll 4
    for (int64_t k = lane; k < vectors; k += kLanes) {
      const Vector<kFormat> run = *reinterpret_cast<const Vector<kFormat>*>(row + k * kSize);
      Wide x[kSize];
#pragma unroll
      for (int j = 0; j < kSize; ++j) x[j] = Element<kFormat>::load(run.v[j]);
      visit(x, kSize, k * kSize);
    }
    column = vectors * kSize;
  }
  for (int64_t k = column + lane; k < classes; k += kLanes) {
    const Wide x[1] = {Element<kFormat>::load(row[k])};
    visit(x, 1, k);
  }
}

// The sum of exponentials relative to the largest so far, and the sum of values relative to `origin`.
template <class T>
struct Running {
  T top, sum, total;

  static __device__ __forceinline__ Running none() { return {-infinity<T>(), T{0}, T{0}}; }

  // exp(x - t), also where both are infinite.
  static __device__ __forceinline__ T relative(T x, T t) { return x == t ? T{1} : exponential(x - t); }

  __device__ __forceinline__ void add(const Running& other) {
    const T both = top > other.top ? top : other.top;
    sum = sum * relative(top, both) + other.sum * relative(other.top, both);
    top = both;
    total += other.total;
  }
};

template <class T>
__device__ __forceinline__ Running<T> from_lane(const Running<T>& r, int distance) {
  const T top = __shfl_xor_sync(0xffffffffu, r.top, distance), sum = __shfl_xor_sync(0xffffffffu, r.sum, distance);
  return {top, sum, __shfl_xor_sync(0xffffffffu, r.total, distance)};
}

template <Format kFormat, int kLanes, int kBlock>
__global__ void __launch_bounds__(kBlock) cross_entropy_kernel(CrossEntropy m) {
  using Wide = typename Element<kFormat>::Wide;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t b = int64_t{blockIdx.x} * (kBlock / kLanes) + threadIdx.x / kLanes;
  const bool present = b < m.batch;  // whole warps at a time
  const TypeOf<kFormat>* row = static_cast<const TypeOf<kFormat>*>(m.logits) + (present ? b : 0) * m.row_stride;
  const int64_t own = present ? m.label[b] : 0, other = present ? m.partner_label[b] : 0;
  const bool known = own >= 0 && own < m.classes && other >= 0 && other < m.classes;
  const Wide smoothing = static_cast<Wide>(m.label_smoothing);
  // Values are summed relative to one of them, which keeps the digits that large logits would swallow.
  Wide origin = present && known ? Element<kFormat>::load(row[own]) : Wide{0};
  if (!(origin > -infinity<Wide>() && origin < infinity<Wide>())) origin = 0;
  Running<Wide> r = Running<Wide>::none();
  if (present) {
    for_each_run<kFormat, kLanes>(row, m.classes, is_aligned<kFormat>(m.logits, m.row_stride), lane,
                                  [&](const auto& x, int count, int64_t) {
                                    Running<Wide> run = Running<Wide>::none();
                                    for (int j = 0; j < count; ++j) run.top = x[j] > run.top ? x[j] : run.top;
                                    const Wide top = run.top > r.top ? run.top : r.top;
                                    for (int j = 0; j < count; ++j) {
                                      run.sum += Running<Wide>::relative(x[j], top);
                                      run.total += x[j] - origin;
                                    }
                                    r.sum = r.sum * Running<Wide>::relative(r.top, top) + run.sum;
                                    r.top = top;
                                    r.total += run.total;
                                  });
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) r.add(from_lane(r, distance));
  if constexpr (kLanes > kWarp) {
    __shared__ Running<Wide> of_warp[kBlock / kWarp];
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = r;
    __syncthreads();
    if (threadIdx.x >= kWarp) return;
    r = of_warp[threadIdx.x % (kBlock / kWarp)];
#pragma unroll
    for (int distance = kBlock / kWarp / 2; distance > 0; distance /= 2) r.add(from_lane(r, distance));
  }
  if (!present || lane != 0) return;
  if (!known) raise(m.flag, kBadIndex);
  const bool finite = r.top > -infinity<Wide>() && r.top < infinity<Wide>();
  const Wide base = finite ? r.top : Wide{0};
  // An infinite maximum is its own logsumexp; NaN anywhere shows in the sum.
  const Wide relative = r.sum != r.sum ? r.sum : (finite ? logarithm(r.sum) : r.top);
  const Wide lam = static_cast<Wide>(m.lam[b]);
  Wide loss = nan_value();
  if (known) {
    const Wide p = Element<kFormat>::load(row[own]) - base, q = Element<kFormat>::load(row[other]) - base;
    const Wide picked = (lam == 0 ? Wide{0} : lam * p) + (lam == 1 ? Wide{0} : (1 - lam) * q);
    loss = relative - (1 - smoothing) * picked;
    if (smoothing != 0) loss -= smoothing * (r.total / static_cast<Wide>(m.classes) + (origin - base));
  }
  static_cast<Wide*>(m.loss)[b] = loss;
  static_cast<Wide*>(m.logsumexp)[b] = base + relative;
}

// The block adds what its threads summed of every kThreads-th loss.
template <class T>
__global__ void __launch_bounds__(kThreads) reduce_loss_kernel(const T* loss, int64_t batch, double factor, T* out) {
  __shared__ double sums[kThreads];
  double sum = 0;
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) sum += loss[b];
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *out = static_cast<T>(sums[0] * factor);
}

template <Format kFormat, int kWidth>
__global__ void __launch_bounds__(kThreads) cross_entropy_backward_kernel(CrossEntropyBackward m) {
  using Type = TypeOf<kFormat>;
  using Wide = typename Element<kFormat>::Wide;
  struct alignas(kWidth == 1 ? sizeof(Type) : 16) Run {
    Type v[kWidth];
  };
  const CrossEntropy& f = m.forward;
  const int64_t units = f.classes / kWidth, total = f.batch * units;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t b = i / units, column = (i - b * units) * kWidth;
    const int64_t own = f.label[b], other = f.partner_label[b];
    const bool known = own >= 0 && own < f.classes && other >= 0 && other < f.classes;
    if (!known && column == 0) raise(f.flag, kBadIndex);
    const Wide lam = static_cast<Wide>(f.lam[b]), smoothing = static_cast<Wide>(f.label_smoothing);
    const Wide scale = static_cast<const Wide*>(m.grad)[b * m.grad_stride] * static_cast<Wide>(m.factor);
    const Wide logsumexp = static_cast<const Wide*>(f.logsumexp)[b], spread = smoothing / static_cast<Wide>(f.classes);
    const Run x = *reinterpret_cast<const Run*>(static_cast<const Type*>(f.logits) + b * f.row_stride + column);
    Run slope;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const Wide target = (column + k == own ? lam : Wide{0}) + (column + k == other ? 1 - lam : Wide{0});
      const Wide softmax = exponential(Element<kFormat>::load(x.v[k]) - logsumexp);
      const Wide value = (softmax - ((1 - smoothing) * target + spread)) * scale;
      slope.v[k] = Element<kFormat>::store(known ? value : static_cast<Wide>(nan_value()));
    }
    *reinterpret_cast<Run*>(static_cast<Type*>(m.grad_logits) + b * f.classes + column) = slope;
  }
}

// The largest value and where it first stands; NaN counts as largest.
template <class T>
struct Largest {
  T value;
  int64_t at;

  __device__ __forceinline__ void meet(T v, int64_t i) {
    const bool hole = v != v, had = value != value;
    const bool wins = hole != had ? hole : (hole || v == value ? i < at : v > value);
    if (wins) {
      value = v;
      at = i;
    }
  }
};

template <Format kFormat, int kLanes, int kBlock>
__global__ void __launch_bounds__(kBlock) group_counts_kernel(GroupCounts m) {
  using Wide = typename Element<kFormat>::Wide;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t b = int64_t{blockIdx.x} * (kBlock / kLanes) + threadIdx.x / kLanes;
  const bool present = b < m.batch;
  const TypeOf<kFormat>* row = static_cast<const TypeOf<kFormat>*>(m.logits) + (present ? b : 0) * m.row_stride;
  Largest<Wide> best = {-infinity<Wide>(), INT64_MAX};
  if (present) {
    for_each_run<kFormat, kLanes>(row, m.classes, is_aligned<kFormat>(m.logits, m.row_stride), lane,
                                  [&](const auto& x, int count, int64_t column) {
                                    for (int j = 0; j < count; ++j) best.meet(x[j], column + j);
                                  });
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Wide value = __shfl_xor_sync(0xffffffffu, best.value, distance);
    best.meet(value, __shfl_xor_sync(0xffffffffu, best.at, distance));
  }
  __shared__ Largest<Wide> of_warp[kBlock / kWarp];
  if constexpr (kLanes > kWarp) {
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = best;
    __syncthreads();
    for (int k = 0; k < kBlock / kWarp; ++k) best.meet(of_warp[k].value, of_warp[k].at);
  }
  if (!present) return;
  const unsigned long long correct = best.at == m.label[b];
  unsigned long long* counts = reinterpret_cast<unsigned long long*>(m.counts);
  if (m.member == nullptr) {
    const int64_t g = m.group[b];
    if (lane != 0) return;
    if (g < -1 || g >= m.groups) raise(m.flag, kBadIndex);
    if (g < 0 || g >= m.groups) return;
    atomicAdd(counts + 2 * g, correct);
    atomicAdd(counts + 2 * g + 1, 1ull);
    return;
  }
  for (int64_t g = lane; g < m.groups; g += kLanes) {
    if (!m.member[b * m.groups + g]) continue;
    atomicAdd(counts + 2 * g, correct);
    atomicAdd(counts + 2 * g + 1, 1ull);
  }
}

template <Format kFormat>
int forward(const CrossEntropy& m, void* stream) {
  constexpr int64_t kRows = kThreads / kWarp;
  if (m.classes < kLong) {
    return launch(cross_entropy_kernel<kFormat, kWarp, kThreads>, (m.batch + kRows - 1) / kRows, kThreads, 0, stream,
                  m);
  }
  return launch(cross_entropy_kernel<kFormat, kLongThreads, kLongThreads>, m.batch, kLongThreads, 0, stream, m);
}

template <Format kFormat>
int backward(const CrossEntropyBackward& m, void* stream) {
  constexpr int kWidth = Vector<kFormat>::kSize;
  const CrossEntropy& f = m.forward;
  const auto blocks = [&](int64_t units) {
    const int64_t wanted = (f.batch * units + kThreads - 1) / kThreads;
    return wanted < 1 << 20 ? wanted : int64_t{1} << 20;
  };
  const bool wide = f.classes % kWidth == 0 && f.row_stride % kWidth == 0 &&
                    reinterpret_cast<uintptr_t>(f.logits) % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(m.grad_logits) % 16 == 0;
  if (wide) {
    return launch(cross_entropy_backward_kernel<kFormat, kWidth>, blocks(f.classes / kWidth), kThreads, 0, stream, m);
  }
  return launch(cross_entropy_backward_kernel<kFormat, 1>, blocks(f.classes), kThreads, 0, stream, m);
}

template <Format kFormat>
int count(const GroupCounts& m, void* stream) {
  constexpr int64_t kRows = kThreads / kWarp;
  if (m.classes < kLong) {
    return launch(group_counts_kernel<kFormat, kWarp, kThreads>, (m.batch + kRows - 1) / kRows, kThreads, 0, stream, m);
  }
  return launch(group_counts_kernel<kFormat, kThreads, kThreads>, m.batch, kThreads, 0, stream, m);
}

}  // namespace

int cross_entropy(const CrossEntropy& args, void* stream) {
  if (args.batch == 0) return 0;
  switch (args.format) {
    case Format::f32: return forward<Format::f32>(args, stream);
    case Format::f16: return forward<Format::f16>(args, stream);
    case Format::bf16: return forward<Format::bf16>(args, stream);
    default: return forward<Format::f64>(args, stream);
  }
}

int reduce_loss(const void* loss, int64_t batch, double factor, Format format, void* out, void* stream) {
  if (format == Format::f64) {
    return launch(reduce_loss_kernel<double>, 1, kThreads, 0, stream, static_cast<const double*>(loss), batch, factor,
                  static_cast<double*>(out));
  }
  return launch(reduce_loss_kernel<float>, 1, kThreads, 0, stream, static_cast<const float*>(loss), batch, factor,
                static_cast<float*>(out));
}

int cross_entropy_backward(const CrossEntropyBackward& args, void* stream) {
  if (args.forward.batch == 0) return 0;
  switch (args.forward.format) {
    case Format::f32: return backward<Format::f32>(args, stream);
    case Format::f16: return backward<Format::f16>(args, stream);
    case Format::bf16: return backward<Format::bf16>(args, stream);
    default: return backward<Format::f64>(args, stream);
  }
}

int group_counts(const GroupCounts& args, void* stream) {
  if (args.batch == 0) return 0;
  switch (args.format) {
    case Format::f32: return count<Format::f32>(args, stream);
    case Format::f16: return count<Format::f16>(args, stream);
    case Format::bf16: return count<Format::bf16>(args, stream);
    default: return count<Format::f64>(args, stream);
  }
}

}  // namespace spurmix::cuda
