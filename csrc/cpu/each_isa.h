// Compiles SPURMIX_BODY once per instruction set, each time in another namespace. Include it after all other headers.
// SPURMIX_SIMD is the number of the instruction set in isa.h. Macros such as __AVX2__ do not work here: g++ before 13
// does not update them after the pragma.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPURMIX_HAS_ISAS 1
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#define SPURMIX_SIMD 1
namespace spurmix::cpu::avx2 {
#include SPURMIX_BODY
}
#undef SPURMIX_SIMD
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,prefer-vector-width=512")
#define SPURMIX_SIMD 2
namespace spurmix::cpu::avx512 {
#include SPURMIX_BODY
}
#undef SPURMIX_SIMD
#pragma GCC target("avx512bf16")
#define SPURMIX_SIMD 3
namespace spurmix::cpu::avx512bf16 {
#include SPURMIX_BODY
}
#undef SPURMIX_SIMD
#pragma GCC pop_options
#endif

#define SPURMIX_SIMD 0
namespace spurmix::cpu::baseline {
#include SPURMIX_BODY
}
#undef SPURMIX_SIMD

#if defined(SPURMIX_HAS_ISAS)
#define SPURMIX_DISPATCH(call)                     \
  switch (isa()) {                                 \
    case Isa::avx512bf16: return avx512bf16::call; \
    case Isa::avx512: return avx512::call;         \
    case Isa::avx2: return avx2::call;             \
    default: return baseline::call;                \
  }
#else
#define SPURMIX_DISPATCH(call) return baseline::call;
#endif
