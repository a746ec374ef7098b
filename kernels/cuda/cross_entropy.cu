// mixed_cross_entropy, forward and backward. The forward pass uses a warp per row, or a block per long row.
#include "logit_rows.cuh"

namespace spurmix::cuda {
namespace {

constexpr int kThreads = 256, kLongRowThreads = 1024;

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// Online softmax: the maximum so far (`top`), the sum of exp(x - top), and the sum of (x - origin), for label smoothing
// (`total`).
template <class T>
struct Running {
  T top, sum, total;

  static __device__ __forceinline__ Running empty() { return {-infinity<T>(), T{0}, T{0}}; }

  // exp(x - t), and 1 if both are the same infinity.
  static __device__ __forceinline__ T relative(T x, T t) { return x == t ? T{1} : exponential(x - t); }

  __device__ __forceinline__ void merge(const Running& r) {
    const T max = top > r.top ? top : r.top;
    sum = sum * relative(top, max) + r.sum * relative(r.top, max);
    top = max;
    total += r.total;
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
  const bool present = b < m.batch;  // the same for all lanes of a warp
  const TypeOf<kFormat>* row = static_cast<const TypeOf<kFormat>*>(m.logits) + (present ? b : 0) * m.row_stride;
  const int64_t label = present ? m.label[b] : 0, partner_label = present ? m.partner_label[b] : 0;
  const bool valid = label >= 0 && label < m.classes && partner_label >= 0 && partner_label < m.classes;
  const Wide smoothing = static_cast<Wide>(m.label_smoothing);
  // Logits are summed relative to one of them, so that large logits do not lose precision.
  Wide origin = present && valid ? Element<kFormat>::load(row[label]) : Wide{0};
  if (!(origin > -infinity<Wide>() && origin < infinity<Wide>())) origin = 0;
  Running<Wide> r = Running<Wide>::empty();
  if (present) {
    for_each_vector<kFormat, kLanes>(row, m.classes, is_aligned<kFormat>(m.logits, m.row_stride), lane,
                                     [&](const auto& x, int count, int64_t) {
                                       Running<Wide> run = Running<Wide>::empty();
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
  for (int distance = kWarp / 2; distance > 0; distance /= 2) r.merge(from_lane(r, distance));
  if constexpr (kLanes > kWarp) {
    __shared__ Running<Wide> of_warp[kBlock / kWarp];
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = r;
    __syncthreads();
    if (threadIdx.x >= kWarp) return;
    r = of_warp[threadIdx.x % (kBlock / kWarp)];
#pragma unroll
    for (int distance = kBlock / kWarp / 2; distance > 0; distance /= 2) r.merge(from_lane(r, distance));
  }
  if (!present || lane != 0) return;
  if (!valid) set_error(m.error_flag, kBadIndex);
  const bool finite = r.top > -infinity<Wide>() && r.top < infinity<Wide>();
  const Wide base = finite ? r.top : Wide{0};
  // An infinite maximum is its own logsumexp. NaN anywhere in the row makes the sum NaN.
  const Wide relative = r.sum != r.sum ? r.sum : (finite ? logarithm(r.sum) : r.top);
  const Wide lam = static_cast<Wide>(m.lam[b]);
  Wide loss = nan_value();
  if (valid) {
    const Wide p = Element<kFormat>::load(row[label]) - base, q = Element<kFormat>::load(row[partner_label]) - base;
    const Wide picked = (lam == 0 ? Wide{0} : lam * p) + (lam == 1 ? Wide{0} : (1 - lam) * q);
    loss = relative - (1 - smoothing) * picked;
    if (smoothing != 0) loss -= smoothing * (r.total / static_cast<Wide>(m.classes) + (origin - base));
  }
  if (!(lam >= 0 && lam <= 1)) {
    set_error(m.error_flag, kBadValue);
    loss = nan_value();
  }
  static_cast<Wide*>(m.loss)[b] = loss;
  static_cast<Wide*>(m.logsumexp)[b] = base + relative;
}

// One block. Each thread sums every kThreads-th loss, then a tree reduction in shared memory adds the sums.
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

// Grid-stride loop. A thread processes kWidth adjacent classes.
template <Format kFormat, int kWidth>
__global__ void __launch_bounds__(kThreads) cross_entropy_backward_kernel(CrossEntropyBackward m) {
  using Type = TypeOf<kFormat>;
  using Wide = typename Element<kFormat>::Wide;
  struct alignas(kWidth == 1 ? sizeof(Type) : 16) Values {
    Type v[kWidth];
  };
  const CrossEntropy& f = m.forward;
  const int64_t vectors = f.classes / kWidth, total = f.batch * vectors;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t b = i / vectors, column = (i - b * vectors) * kWidth;
    const int64_t label = f.label[b], partner_label = f.partner_label[b];
    const bool in_range = label >= 0 && label < f.classes && partner_label >= 0 && partner_label < f.classes;
    const float weight = f.lam[b];
    const bool valid = in_range && is_weight(weight);
    if (!valid && column == 0) set_error(f.error_flag, sample_error(in_range));
    const Wide lam = static_cast<Wide>(weight), smoothing = static_cast<Wide>(f.label_smoothing);
    const Wide scale = static_cast<const Wide*>(m.grad)[b * m.grad_stride] * static_cast<Wide>(m.factor);
    const Wide logsumexp = static_cast<const Wide*>(f.logsumexp)[b], spread = smoothing / static_cast<Wide>(f.classes);
    const Values x = *reinterpret_cast<const Values*>(static_cast<const Type*>(f.logits) + b * f.row_stride + column);
    Values grad;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const Wide target = (column + k == label ? lam : Wide{0}) + (column + k == partner_label ? 1 - lam : Wide{0});
      const Wide softmax = exponential(Element<kFormat>::load(x.v[k]) - logsumexp);
      const Wide value = (softmax - ((1 - smoothing) * target + spread)) * scale;
      grad.v[k] = Element<kFormat>::store(valid ? value : static_cast<Wide>(nan_value()));
    }
    *reinterpret_cast<Values*>(static_cast<Type*>(m.grad_logits) + b * f.classes + column) = grad;
  }
}

template <Format kFormat>
int forward(const CrossEntropy& m, void* stream) {
  constexpr int64_t kRows = kThreads / kWarp;
  if (m.classes < kLongRow) {
    return launch(cross_entropy_kernel<kFormat, kWarp, kThreads>, (m.batch + kRows - 1) / kRows, kThreads, 0, stream,
                  m);
  }
  return launch(cross_entropy_kernel<kFormat, kLongRowThreads, kLongRowThreads>, m.batch, kLongRowThreads, 0, stream,
                m);
}

template <Format kFormat>
int backward(const CrossEntropyBackward& m, void* stream) {
  constexpr int kWidth = LogitVector<kFormat>::kSize;
  const CrossEntropy& f = m.forward;
  const bool vectorized = f.classes % kWidth == 0 && f.row_stride % kWidth == 0 &&
                          reinterpret_cast<uintptr_t>(f.logits) % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(m.grad_logits) % 16 == 0;
  if (vectorized) {
    const int64_t blocks = blocks_for(f.batch * (f.classes / kWidth), kThreads);
    return launch(cross_entropy_backward_kernel<kFormat, kWidth>, blocks, kThreads, 0, stream, m);
  }
  const int64_t blocks = blocks_for(f.batch * f.classes, kThreads);
  return launch(cross_entropy_backward_kernel<kFormat, 1>, blocks, kThreads, 0, stream, m);
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

}  // namespace spurmix::cuda
