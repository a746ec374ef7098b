// Drives the torch-free kernels and the counting sort with pseudo-random inputs, for `make sanitize`: every array has
// exactly its size, half of them against a page without access, where intrinsics that ASan does not see fault as well.
// Results are compared with plain scalar formulas. Usage: driver [cases] [seed] [the one case to repeat]
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

#include "../../csrc/cpu/isa.h"
#include "../../csrc/cpu/kernels.h"
#include "../../csrc/cpu/text.h"
#include "../../csrc/host/group_cells.h"
#include "../../csrc/host/tokens.h"

extern "C" void __sanitizer_set_death_callback(void (*)());

using namespace spurmix;
using cpu::Format;

namespace {

#include "helpers.h"

#include "cells_case.h"
#include "draw_case.h"
#include "images_case.h"
#include "loss_case.h"
#include "rows_case.h"
#include "text_case.h"
#include "tokens_case.h"

struct Family {
  const char* name;
  int64_t weight;  // of 100 cases
  void (*run)();
};

constexpr Family kFamilies[] = {{"mix_images", 33, images_case},
                                {"draw", 10, draw_case},
                                {"view_tables", 5, tables_case},
                                {"mix_rows", 10, rows_case},
                                {"embeddings", 10, text_case},
                                {"mix_labels", 6, labels_case},
                                {"loss", 15, loss_case},
                                {"group_cells32", 4, cells_case<int32_t>},
                                {"group_cells64", 3, cells_case<int64_t>},
                                {"texts", 4, texts_case}};

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoll(argv[1]) : 1000, seed = argc > 2 ? std::atoll(argv[2]) : 1;
  const int64_t only = argc > 3 ? std::atoll(argv[3]) : -1;
  const char* asked = std::getenv("SPURMIX_CPU_ISA");
  try {
    cpu::isa();
  } catch (const std::runtime_error& error) {
    std::printf("sanitize: %s left out: %s\n", asked != nullptr ? asked : "", error.what());
    return 0;
  }
  __sanitizer_set_death_callback([] { std::fprintf(stderr, "sanitize: in %s\n", place.c_str()); });
  for (int64_t k = only >= 0 ? only : 0; k < (only >= 0 ? only + 1 : cases); ++k) {
    rng.state = static_cast<uint64_t>(seed) * 0x100000001B3u + static_cast<uint64_t>(k) * 0xD1342543DE82EF95u;
    int64_t left = k % 100;
    const Family* family = kFamilies;
    for (; left >= family->weight; ++family) left -= family->weight;
    place = std::string(cpu::isa_name()) + ", seed " + std::to_string(seed) + ", case " + std::to_string(k) + " (" +
            family->name + ")";
    family->run();
  }
  std::printf("sanitize: %s: %lld cases\n", cpu::isa_name(), static_cast<long long>(cases));
  return 0;
}
