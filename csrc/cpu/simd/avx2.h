// F16 on AVX2, FMA and F16C: two registers of eight floats.
struct F16 {
  __m256 low, high;
};

constexpr int64_t kGroup = 4, kWindow = 16;

inline F16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline F16 madd(F16 a, F16 b, F16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }

inline F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
// Returns b if either is NaN.
inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline F16 round(F16 a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
}

inline __m256 scale_by_power(__m256 a, __m256 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
// a * 2^n, n in [-126, 127].
inline F16 scale_by_power(F16 a, F16 n) { return {scale_by_power(a.low, n.low), scale_by_power(a.high, n.high)}; }

inline F16 zero_below(F16 a, F16 x, float limit) {
  const __m256 bound = _mm256_set1_ps(limit);
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.low, bound, _CMP_LT_OQ), a.low),
          _mm256_andnot_ps(_mm256_cmp_ps(x.high, bound, _CMP_LT_OQ), a.high)};
}

inline float sum(F16 a) {
  const __m256 both = _mm256_add_ps(a.low, a.high);
  __m128 v = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
}
inline float largest(F16 a) {
  const __m256 both = _mm256_max_ps(a.low, a.high);
  __m128 v = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}

inline __m128i load_128(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

inline F16 load_half(const uint16_t* from) {
  return {_mm256_cvtph_ps(load_128(from)), _mm256_cvtph_ps(load_128(from + 8))};
}

inline __m256 widen_bfloat16(const uint16_t* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(from)), 16));
}
inline F16 load_bfloat16(const uint16_t* from) { return {widen_bfloat16(from), widen_bfloat16(from + 8)}; }

inline F16 load_bytes(const uint8_t* from) {
  const __m128i bytes = load_128(from);
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}

// Byte shuffles select sixteen bytes from windows of memory: four groups of four bytes, each from the 16 bytes at its
// base.
struct Window {
  __m256i low, high;
};
using Order = Window;

inline __m256i load_pair(const uint8_t* first, const uint8_t* second) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(first)), load_128(second), 1);
}
inline Window load_window(const uint8_t* at, const int32_t* base) {
  return {load_pair(at + base[0], at + base[1]), load_pair(at + base[2], at + base[3])};
}
inline Order load_order(const uint32_t* order) {
  const __m256i* at = reinterpret_cast<const __m256i*>(order);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline Order move_order(Order order, int bytes) {
  const __m256i by = _mm256_set1_epi32(bytes);
  return {_mm256_add_epi32(order.low, by), _mm256_add_epi32(order.high, by)};
}
inline F16 pick(Window window, Order order) {
  return {_mm256_cvtepi32_ps(_mm256_shuffle_epi8(window.low, order.low)),
          _mm256_cvtepi32_ps(_mm256_shuffle_epi8(window.high, order.high))};
}

template <bool kStream>
inline void store_128(void* to, __m128i v) {
  if (kStream) {
    _mm_stream_si128(static_cast<__m128i*>(to), v);
  } else {
    _mm_storeu_si128(static_cast<__m128i*>(to), v);
  }
}

template <bool kStream>
inline void store(float* to, F16 a) {
  if (kStream) {
    _mm256_stream_ps(to, a.low);
    _mm256_stream_ps(to + 8, a.high);
  } else {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
  }
}

template <bool kStream>
inline void store_half(uint16_t* to, F16 a) {
  store_128<kStream>(to, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
  store_128<kStream>(to + 8, _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}

inline __m128i round_bfloat16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a),
                odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i carried = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(carried, _mm256_set1_epi32(0x7fc00000), nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

template <bool kStream>
inline void store_bfloat16(uint16_t* to, F16 a) {
  store_128<kStream>(to, round_bfloat16(a.low));
  store_128<kStream>(to + 8, round_bfloat16(a.high));
}

inline void finish_streams() { _mm_sfence(); }
