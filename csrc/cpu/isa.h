// The instruction set that kernels run with: the best of the machine, or what SPURMIX_CPU_ISA asks for.
#pragma once

namespace spurmix::cpu {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

Isa isa();
const char* isa_name();

}  // namespace spurmix::cpu
