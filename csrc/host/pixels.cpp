#include "pixels.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

namespace spurmix::host {
namespace {

constexpr int64_t kPiece = int64_t{64} << 10;  // pixels at a time: they stay in the second cache

// Four pixels of four bytes become three words.
void pack(const uint8_t* from, int64_t count, uint8_t* to) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    uint32_t p[4], w[3];
    std::memcpy(p, from + 4 * k, sizeof p);
    w[0] = (p[0] & 0xFFFFFF) | (p[1] << 24);
    w[1] = ((p[1] >> 8) & 0xFFFF) | (p[2] << 16);
    w[2] = ((p[2] >> 16) & 0xFF) | (p[3] << 8);
    std::memcpy(to + 3 * k, w, sizeof w);
  }
  for (; k < count; ++k) std::memcpy(to + 3 * k, from + 4 * k, 3);
}

}  // namespace

int write_rgb(int fd, int64_t at, const uint8_t* pixels, int64_t count) {
  thread_local std::vector<uint8_t> packed;
  packed.resize(static_cast<size_t>(3 * std::min(count, kPiece)));
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t part = std::min(kPiece, count - begin);
    pack(pixels + 4 * begin, part, packed.data());
    for (int64_t done = 0; done < 3 * part;) {
      const ssize_t put =
          pwrite(fd, packed.data() + done, static_cast<size_t>(3 * part - done), static_cast<off_t>(at));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return errno;
      done += put;
      at += put;
    }
  }
  return 0;
}

}  // namespace spurmix::host
