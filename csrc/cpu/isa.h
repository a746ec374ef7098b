// The instruction set of the kernels: the best one of the machine, or the value of SPURMIX_CPU_ISA.
#pragma once

namespace spurmix::cpu {

// avx512 requires F, BW, VL, DQ and VBMI (Ice Lake, Zen 4). Machines with only some of these use avx2.
enum class Isa { baseline = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

Isa isa();
const char* isa_name();

}  // namespace spurmix::cpu
