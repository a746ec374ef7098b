// F16 in portable C++: loops over sixteen floats, which compilers vectorize.
struct F16 {
  float v[16];
};

// There are no byte shuffles. A window of 0 bytes contains no tap, so the functions below are never called.
constexpr int64_t kGroup = 16, kWindow = 0;
struct Window {};
struct Order {};
inline Window load_window(const uint8_t*, const int32_t*) { return {}; }
inline Order load_order(const uint32_t*) { return {}; }
inline Order move_order(Order, int) { return {}; }

#define SPURMIX_EACH(expression)                    \
  F16 r;                                            \
  for (int i = 0; i < 16; ++i) r.v[i] = expression; \
  return r

inline F16 splat(float x) { SPURMIX_EACH(x); }
inline F16 load(const float* from) { SPURMIX_EACH(from[i]); }
inline F16 load_half(const uint16_t* from) { SPURMIX_EACH(from_half(from[i])); }
inline F16 load_bfloat16(const uint16_t* from) { SPURMIX_EACH(from_bfloat16(from[i])); }
inline F16 load_bytes(const uint8_t* from) { SPURMIX_EACH(static_cast<float>(from[i])); }
inline F16 madd(F16 a, F16 b, F16 c) { SPURMIX_EACH(a.v[i] * b.v[i] + c.v[i]); }
inline F16 mul(F16 a, F16 b) { SPURMIX_EACH(a.v[i] * b.v[i]); }
inline F16 sub(F16 a, F16 b) { SPURMIX_EACH(a.v[i] - b.v[i]); }
inline F16 add(F16 a, F16 b) { SPURMIX_EACH(a.v[i] + b.v[i]); }
inline F16 max(F16 a, F16 b) { SPURMIX_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }  // b if either is NaN
inline F16 round(F16 a) { SPURMIX_EACH((a.v[i] + 12582912.0f) - 12582912.0f); }    // to nearest, for |a| < 2^22
inline F16 scale_by_power(F16 a, F16 n) {                                          // a * 2^n, n in [-126, 127]
  SPURMIX_EACH(a.v[i] * bits_float((float_bits(n.v[i] + 12582912.0f) - 0x4b400000u + 127u) << 23));
}
inline F16 zero_below(F16 a, F16 x, float limit) { SPURMIX_EACH(x.v[i] < limit ? 0.0f : a.v[i]); }
inline F16 pick(Window, Order) { SPURMIX_EACH(0.0f); }
#undef SPURMIX_EACH

template <bool kStream>
inline void store(float* to, F16 a) {
  for (int i = 0; i < 16; ++i) to[i] = a.v[i];
}

template <bool kStream>
inline void store_half(uint16_t* to, F16 a) {
  for (int i = 0; i < 16; ++i) to[i] = to_half(a.v[i]);
}

template <bool kStream>
inline void store_bfloat16(uint16_t* to, F16 a) {
  for (int i = 0; i < 16; ++i) to[i] = to_bfloat16(a.v[i]);
}

inline float sum(F16 a) {
  for (int n = 8; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) a.v[i] += a.v[i + n];
  }
  return a.v[0];
}
inline float largest(F16 a) {
  for (int i = 1; i < 16; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
  return a.v[0];
}

inline void finish_streams() {}
