// The instruction set that kernels run with: the best of the machine, or what SPURMIX_CPU_ISA asks for.
#pragma once

namespace spurmix::cpu {

// avx512 means F, BW, VL, DQ and VBMI (Ice Lake, Zen 4); machines with less run avx2.
enum class Isa { baseline = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

Isa isa();
const char* isa_name();

}  // namespace spurmix::cpu
