// Runs the CPU kernels, the counting sort and the packing of texts on random inputs, for `make sanitize`. Every array
// has exactly the required size. Half of the arrays begin or end at an inaccessible page, so that invalid accesses of
// SIMD intrinsics, which ASan does not check, fault too. Results are compared with scalar formulas.
//
// Usage: driver [cases] [seed] [case to repeat]
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cpu/embeddings.h"
#include "../../csrc/cpu/isa.h"
#include "../../csrc/cpu/kernels.h"
#include "../../csrc/host/group_cells.h"
#include "../../csrc/host/tokens.h"

extern "C" void __sanitizer_set_death_callback(void (*)());

using namespace spurmix;
using cpu::Format;

namespace {

#include "helpers.h"

#include "cells_case.h"
#include "cross_entropy_case.h"
#include "draw_case.h"
#include "embeddings_case.h"
#include "mix_images_case.h"
#include "mix_rows_case.h"
#include "tokens_case.h"

struct Family {
  const char* name;
  int64_t weight;  // cases per 100
  void (*run)();
};

constexpr Family kFamilies[] = {{"mix_images", 28, mix_images_case},
                                {"draw", 10, draw_case},
                                {"view_tables", 5, tables_case},
                                {"altered_tables", 5, altered_tables_case},
                                {"mix_rows", 10, mix_rows_case},
                                {"embeddings", 10, embeddings_case},
                                {"mix_labels", 6, mix_labels_case},
                                {"cross_entropy", 15, cross_entropy_case},
                                {"group_cells32", 4, cells_case<int32_t>},
                                {"group_cells64", 3, cells_case<int64_t>},
                                {"texts", 4, tokens_case}};

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoll(argv[1]) : 1000, seed = argc > 2 ? std::atoll(argv[2]) : 1;
  const int64_t only = argc > 3 ? std::atoll(argv[3]) : -1;
  const char* requested = std::getenv("SPURMIX_CPU_ISA");
  try {
    cpu::isa();
  } catch (const std::runtime_error& error) {
    std::printf("sanitize: %s skipped: %s\n", requested != nullptr ? requested : "", error.what());
    return 0;
  }
  __sanitizer_set_death_callback([] { std::fprintf(stderr, "sanitize: in %s\n", current_case.c_str()); });
  for (int64_t k = only >= 0 ? only : 0; k < (only >= 0 ? only + 1 : cases); ++k) {
    rng.state = static_cast<uint64_t>(seed) * 0x100000001B3u + static_cast<uint64_t>(k) * 0xD1342543DE82EF95u;
    int64_t left = k % 100;
    const Family* family = kFamilies;
    for (; left >= family->weight; ++family) left -= family->weight;
    current_case = std::string(cpu::isa_name()) + ", seed " + std::to_string(seed) + ", case " + std::to_string(k) +
                   " (" + family->name + ")";
    family->run();
  }
  std::printf("sanitize: %s: %lld cases\n", cpu::isa_name(), static_cast<long long>(cases));
  return 0;
}
