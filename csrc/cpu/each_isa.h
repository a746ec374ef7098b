// Compiles SPURMIX_BODY once per instruction set, each in a namespace of its own. Include after all other headers.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPURMIX_HAS_ISAS 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
namespace spurmix::cpu::avx2 {
#include SPURMIX_BODY
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace spurmix::cpu::avx512 {
#include SPURMIX_BODY
}
#pragma GCC pop_options
#endif
namespace spurmix::cpu::baseline {
#include SPURMIX_BODY
}

#if defined(SPURMIX_HAS_ISAS)
#define SPURMIX_DISPATCH(call)             \
  switch (isa()) {                         \
    case Isa::avx512: return avx512::call; \
    case Isa::avx2: return avx2::call;     \
    default: return baseline::call;        \
  }
#else
#define SPURMIX_DISPATCH(call) return baseline::call;
#endif
