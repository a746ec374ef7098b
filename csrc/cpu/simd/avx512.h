// F16 on AVX-512 with VBMI: one register. Uses the bfloat16 conversion instruction if the machine has it.
using F16 = __m512;

constexpr int64_t kGroup = 16, kWindow = 64;

inline F16 splat(float x) { return _mm512_set1_ps(x); }
inline F16 load(const float* from) { return _mm512_loadu_ps(from); }
inline F16 madd(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
inline F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
inline F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }

inline F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
inline F16 max(F16 a, F16 b) { return _mm512_max_ps(a, b); }  // b if either is NaN
inline F16 round(F16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F16 scale_by_power(F16 a, F16 n) { return _mm512_scalef_ps(a, n); }  // a * 2^n
inline F16 zero_below(F16 a, F16 x, float limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), a);
}
inline float sum(F16 a) { return _mm512_reduce_add_ps(a); }
inline float largest(F16 a) { return _mm512_reduce_max_ps(a); }

inline __m256i load_256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline F16 load_half(const uint16_t* from) { return _mm512_cvtph_ps(load_256(from)); }
inline F16 load_bfloat16(const uint16_t* from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_256(from)), 16));
}
inline F16 load_bytes(const uint8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// Byte shuffles select sixteen bytes from a window of memory: one group of sixteen, from the 64 bytes at its base.
using Window = __m512i;
using Order = __m512i;

inline Window load_window(const uint8_t* at, const int32_t* base) { return _mm512_loadu_si512(at + base[0]); }
inline Order load_order(const uint32_t* order) { return _mm512_loadu_si512(order); }
inline Order move_order(Order order, int bytes) { return _mm512_add_epi32(order, _mm512_set1_epi32(bytes)); }
inline F16 pick(Window window, Order order) {
  return _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(0x1111111111111111, order, window));
}

template <bool kStream>
inline void store(float* to, F16 a) {
  if (kStream) {
    _mm512_stream_ps(to, a);
  } else {
    _mm512_storeu_ps(to, a);
  }
}

template <bool kStream>
inline void store_256(void* to, __m256i v) {
  if (kStream) {
    _mm256_stream_si256(static_cast<__m256i*>(to), v);
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(to), v);
  }
}

template <bool kStream>
inline void store_half(uint16_t* to, F16 a) {
  store_256<kStream>(to, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

template <bool kStream>
inline void store_bfloat16(uint16_t* to, F16 a) {
#if SPURMIX_SIMD >= 3
  // Results below 2^-126 become 0. The other implementations keep them, so only these results differ.
  const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a));
#else
  const __m512i bits = _mm512_castps_si512(a),
                odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i carried = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i words = _mm512_srli_epi32(_mm512_mask_set1_epi32(carried, nan, 0x7fc00000), 16);
  const __m256i rounded = _mm512_cvtepi32_epi16(words);
#endif
  store_256<kStream>(to, rounded);
}

inline void finish_streams() { _mm_sfence(); }
