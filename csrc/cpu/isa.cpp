#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace spurmix::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512bf16"};

Isa best() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  return bf16 ? Isa::avx512bf16 : avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

Isa choose() {
  const Isa top = best();
  const char* requested = std::getenv("SPURMIX_CPU_ISA");
  if (requested == nullptr || *requested == '\0') return top;
  for (int k = 0; k < 4; ++k) {
    if (std::strcmp(requested, kNames[k]) != 0) continue;
    if (k <= static_cast<int>(top)) return static_cast<Isa>(k);
    throw std::runtime_error(std::string("SPURMIX_CPU_ISA=") + requested + ": this machine supports at most " +
                             kNames[static_cast<int>(top)]);
  }
  throw std::runtime_error(std::string("SPURMIX_CPU_ISA must be baseline, avx2, avx512 or avx512bf16, got '") +
                           requested + "'");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name() { return kNames[static_cast<int>(isa())]; }

}  // namespace spurmix::cpu
