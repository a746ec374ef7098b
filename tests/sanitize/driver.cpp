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

std::string place;  // the case that runs, for messages

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "sanitize: %s: %s\n", place.c_str(), what.c_str());
  std::exit(1);
}

void expect(bool right, const char* what) {
  if (!right) fail(what);
}

struct Random {
  uint64_t state;
  uint64_t bits() {  // splitmix64
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t in(int64_t low, int64_t high) {  // both inclusive
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  bool one_in(int64_t n) { return in(1, n) == 1; }
  float unit() { return static_cast<float>(bits() >> 40) * 0x1p-24f; }
  float between(float low, float high) { return low + (high - low) * unit(); }
};

Random rng;

// Memory of exactly `size` bytes: from malloc, or ending or beginning at a page without access.
class Bytes {
 public:
  explicit Bytes(int64_t size) : size_(static_cast<size_t>(size)) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const int64_t kind = rng.in(0, 3);
    if (kind < 2) {
      at_ = kind == 0 ? static_cast<char*>(std::malloc(size_)) : nullptr;
      if (at_ == nullptr && posix_memalign(reinterpret_cast<void**>(&at_), 64, size_) != 0) fail("no memory");
      return;
    }
    const size_t body = (size_ + page - 1) / page * page;
    mapped_ = body + 2 * page;
    void* base = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fail("no memory");
    base_ = static_cast<char*>(base);
    if (body > 0 && mprotect(base_ + page, body, PROT_READ | PROT_WRITE) != 0) fail("no memory");
    at_ = base_ + page + (kind == 2 ? body - size_ : 0);
  }
  ~Bytes() {
    if (base_ == nullptr) {
      std::free(at_);
    } else {
      munmap(base_, mapped_);
    }
  }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  char* data() { return at_; }
  size_t size() const { return size_; }

 private:
  char *at_ = nullptr, *base_ = nullptr;
  size_t size_, mapped_ = 0;
};

template <class T>
class Array {
 public:
  explicit Array(int64_t count) : bytes_(count * static_cast<int64_t>(sizeof(T))), count_(count) {}
  template <class Make>
  Array(int64_t count, const Make& make) : Array(count) {
    for (int64_t i = 0; i < count; ++i) data()[i] = static_cast<T>(make(i));
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data()); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return count_; }

 private:
  Bytes bytes_;
  int64_t count_;
};

int64_t width_of(Format format) { return format == Format::f64 ? 8 : format == Format::f32 ? 4 : 2; }

// Numbers of a format.
struct Numbers {
  Format format;
  Bytes bytes;
  Numbers(Format format, int64_t count) : format(format), bytes(count * width_of(format)) {
    std::fill(bytes.data(), bytes.data() + bytes.size(), '\x5a');
  }
  void* data() { return bytes.data(); }
  double get(int64_t i) {
    switch (format) {
      case Format::f64: return reinterpret_cast<double*>(bytes.data())[i];
      case Format::f32: return reinterpret_cast<float*>(bytes.data())[i];
      case Format::f16: return from_half(reinterpret_cast<uint16_t*>(bytes.data())[i]);
      default: return from_bfloat16(reinterpret_cast<uint16_t*>(bytes.data())[i]);
    }
  }
  void set(int64_t i, double v) {
    const float f = static_cast<float>(v);
    switch (format) {
      case Format::f64: reinterpret_cast<double*>(bytes.data())[i] = v; break;
      case Format::f32: reinterpret_cast<float*>(bytes.data())[i] = f; break;
      case Format::f16: reinterpret_cast<uint16_t*>(bytes.data())[i] = to_half(f); break;
      default: reinterpret_cast<uint16_t*>(bytes.data())[i] = to_bfloat16(f);
    }
  }
  // Whether entry i is `expected`, up to the format's rounding and `noise` of the arithmetic.
  bool near(int64_t i, double expected, double noise) {
    const double step = format == Format::f64   ? 1e-15
                        : format == Format::f32 ? 1e-6
                        : format == Format::f16 ? 1e-3
                                                : 8e-3;
    const double got = get(i);
    if (std::isnan(expected)) return std::isnan(got);
    if (std::isinf(expected)) return got == expected;
    return std::abs(got - expected) <= noise + step * std::abs(expected) + 1e-7;
  }
};

constexpr Format kFormats[] = {Format::f32, Format::f16, Format::bf16, Format::f64};

float random_lam() {
  const float special[] = {0.0f, 1.0f, 0.5f, 1.0f};
  return rng.one_in(4) ? special[rng.in(0, 3)] : rng.unit();
}

// Runs kernel(args, begin, end) over [0, items) in up to three ranges, the later ones first.
template <class Args>
void in_ranges(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t items) {
  const int64_t a = rng.in(0, items), b = rng.in(a, items);
  kernel(args, b, items);
  kernel(args, a, b);
  kernel(args, 0, a);
}

// ---- images

Box random_box(int64_t h, int64_t w) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float absurd[] = {NAN, infinity, -infinity, 1e30f, -1e30f, 0.0f, -0.0f, -3.5f, 1048576.0f, 1e-40f};
  const float hf = static_cast<float>(h), wf = static_cast<float>(w);
  if (rng.one_in(4)) {
    float v[4];
    for (float& x : v) x = rng.one_in(3) ? rng.between(-2.0f * hf, 2.0f * wf) : absurd[rng.in(0, 9)];
    return {v[0], v[1], v[2], v[3]};
  }
  const float height = rng.between(0.0f, hf), width = rng.between(0.0f, wf);
  return {rng.between(0.0f, hf - height), rng.between(0.0f, wf - width), height, width};
}

double sampled(const uint8_t* image, const cpu::MixImages& m, const Box& box, bool flip, int64_t y, int64_t x,
               int64_t c) {
  const Tap v = axis_tap(q16(box.top), q16(box.height), m.height, m.out_height, y);
  const Tap u = axis_tap(q16(box.left), q16(box.width), m.width, m.out_width, flip ? m.out_width - 1 - x : x);
  const auto pixel = [&](int64_t row, int64_t column) -> double {
    return image[(row * m.width + column) * m.channels + c];
  };
  const double upper = pixel(v.i0, u.i0) + static_cast<double>(u.f) * (pixel(v.i0, u.i1) - pixel(v.i0, u.i0));
  const double lower = pixel(v.i1, u.i0) + static_cast<double>(u.f) * (pixel(v.i1, u.i1) - pixel(v.i1, u.i0));
  return upper + static_cast<double>(v.f) * (lower - upper);
}

void images_case() {
  const bool tiny = rng.one_in(3);
  cpu::MixImages m = {};
  m.height = rng.in(1, tiny ? 5 : 70);
  m.width = rng.in(1, tiny ? 5 : 70);
  m.channels = rng.in(1, 6);
  const int64_t total = rng.in(1, 5), batch = rng.in(0, 5), size = m.height * m.width * m.channels;
  m.image_stride = size + (rng.one_in(3) ? rng.in(1, 100) : 0);
  Array<uint8_t> images((total - 1) * m.image_stride + size, [](int64_t) { return rng.bits(); });
  Array<int64_t> index(batch, [&](int64_t) { return rng.in(0, total - 1); });
  Array<int64_t> partner(batch, [&](int64_t) { return rng.in(0, total - 1); });
  Array<float> lam(batch, [](int64_t) { return random_lam(); });
  Array<float> mean(m.channels, [](int64_t) { return rng.unit(); });
  Array<float> std(m.channels, [](int64_t) { return rng.between(0.2f, 1.0f); });
  const bool boxed = rng.one_in(2), flipped = rng.one_in(2);
  Array<Box> boxes(boxed ? 2 * batch : 0);
  for (int64_t i = 0; i < boxes.size(); ++i) boxes[i] = random_box(m.height, m.width);
  Array<uint8_t> flips(flipped ? 2 * batch : 0, [](int64_t) { return rng.in(0, 2) / 2; });
  m.out_height = boxed ? rng.in(1, 70) : m.height;
  m.out_width = boxed ? rng.in(1, 70) : m.width;
  m.images = images.data();
  m.index = index.data();
  m.partner = partner.data();
  m.lam = lam.data();
  m.mean = mean.data();
  m.std = std.data();
  m.boxes = boxed ? boxes.data() : nullptr;
  m.flips = flipped ? flips.data() : nullptr;
  m.format = kFormats[rng.in(0, 2)];
  m.channels_last = rng.one_in(2);
  m.parts = rng.in(1, 4);
  m.stream = rng.one_in(2);
  const int64_t values = m.channels * m.out_height * m.out_width;
  Numbers out(m.format, batch * values);
  m.out = out.data();
  in_ranges(cpu::mix_images, m, batch * m.parts);

  const Box whole = {0.0f, 0.0f, static_cast<float>(m.height), static_cast<float>(m.width)};
  for (int64_t n = 0; n < batch; ++n) {
    const uint8_t *a = m.images + index[n] * m.image_stride, *b = m.images + partner[n] * m.image_stride;
    for (int64_t c = 0; c < m.channels; ++c) {
      for (int64_t y = 0; y < m.out_height; ++y) {
        for (int64_t x = 0; x < m.out_width; ++x) {
          const double va = sampled(a, m, boxed ? boxes[2 * n] : whole, flipped && flips[2 * n], y, x, c);
          const double vb = sampled(b, m, boxed ? boxes[2 * n + 1] : whole, flipped && flips[2 * n + 1], y, x, c);
          const double w = lam[n], mixed = (w * va + (1 - w) * vb) / 255;
          const int64_t at =
              m.channels_last ? (y * m.out_width + x) * m.channels + c : (c * m.out_height + y) * m.out_width + x;
          if (!out.near(n * values + at, (mixed - mean[c]) / std[c], 1e-5)) {
            fail("mix_images: sample " + std::to_string(n) + ", value " + std::to_string(at) + " is " +
                 std::to_string(out.get(n * values + at)) + ", not " + std::to_string((mixed - mean[c]) / std[c]));
          }
        }
      }
    }
  }
}

// ---- the draw

std::vector<int64_t> random_tables(int64_t* examples) {
  const int64_t strata = rng.in(1, 6);
  std::vector<int64_t> offsets = {0}, share, first, size, slots, sizes_of_groups;
  for (int64_t s = 0; s < strata; ++s) {
    first.push_back(offsets.back());
    const int64_t groups = rng.in(1, 4), filled = rng.in(0, groups - 1);
    for (int64_t g = 0; g < groups; ++g) {
      int64_t count = rng.one_in(4) ? 0 : rng.in(1, 10);
      if (g == filled) count = rng.one_in(5) ? rng.in(1, int64_t{1} << rng.in(5, 50)) : rng.in(1, 40);
      sizes_of_groups.push_back(count);
      offsets.push_back(offsets.back() + count);
    }
    size.push_back(offsets.back() - first.back());
    share.push_back(rng.in(1, 9));
    for (int64_t r = 0; r < share.back(); ++r) slots.push_back(s << 32 | r);
  }
  for (size_t k = slots.size(); k > 1; --k) std::swap(slots[k - 1], slots[rng.in(0, static_cast<int64_t>(k) - 1)]);
  const int64_t groups = static_cast<int64_t>(sizes_of_groups.size()), rows = rng.in(0, groups);
  std::vector<int64_t> row_of, threshold, quantile;
  for (int64_t g = 0; g < groups; ++g) row_of.push_back(rng.in(-1, rows - 1));
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> running;
    double sum = 0;
    for (int64_t g = 0; g < groups; ++g) {
      if (sizes_of_groups[g] > 0 && !rng.one_in(3)) sum += rng.unit();
      running.push_back(sum);
    }
    for (int64_t g = 0; g < groups && sum == 0; ++g) {  // nothing was chosen: the first group that has members
      if (sizes_of_groups[g] == 0) continue;
      std::fill(running.begin() + g, running.end(), 1.0);
      break;
    }
    for (const double v : running) threshold.push_back(static_cast<int64_t>(std::floor(0x1p32 * v / running.back())));
  }
  for (int64_t k = 0; k < kQuantiles; ++k) quantile.push_back(rng.in(0, 1 << 24));
  std::sort(quantile.begin(), quantile.end());

  const std::vector<const std::vector<int64_t>*> sections = {&slots,   &share,  &first,     &size,
                                                             &offsets, &row_of, &threshold, &quantile};
  *examples = offsets.back();
  std::vector<int64_t> packed = {kTablesMagic, 0, *examples, groups, strata, static_cast<int64_t>(slots.size()), rows,
                                 rng.in(0, 3)};
  int64_t at = kHeader;
  for (const auto* section : sections) {
    packed.push_back(at);
    at += static_cast<int64_t>(section->size());
  }
  packed[1] = at;
  for (const auto* section : sections) packed.insert(packed.end(), section->begin(), section->end());
  return packed;
}

void draw_case() {
  int64_t examples = 0;
  const std::vector<int64_t> made = random_tables(&examples);
  Array<int64_t> packed(static_cast<int64_t>(made.size()), [&](int64_t i) { return made[i]; });
  cpu::Draw args = {};
  expect(view_tables(packed.data(), packed.size(), &args.tables) == nullptr, "valid tables were rejected");
  const int64_t kind = examples < 100000 ? rng.in(0, 2) : 0;
  Array<int32_t> members32(kind == 1 ? examples : 0, [&](int64_t i) { return examples - 1 - i; });
  Array<int64_t> members64(kind == 2 ? examples : 0, [&](int64_t i) { return (i + 1) % examples; });
  args.tables.members32 = kind == 1 ? members32.data() : nullptr;
  args.tables.members64 = kind == 2 ? members64.data() : nullptr;
  args.seed = rng.bits() >> 1;
  const int64_t count = rng.one_in(2) ? rng.in(0, 5) : rng.in(0, 900);
  args.start = rng.one_in(2) ? static_cast<uint64_t>(rng.in(0, 1000)) : (rng.bits() >> rng.in(1, 40));
  args.start = std::min(args.start, static_cast<uint64_t>(INT64_MAX) - static_cast<uint64_t>(count));
  Array<int64_t> index(count), partner(count), group(count);
  Array<float> lam(count);
  Array<uint32_t> flip_bits(count);
  args.index = index.data();
  args.partner = partner.data();
  args.group = group.data();
  args.lam = lam.data();
  args.flip_bits = rng.one_in(2) ? flip_bits.data() : nullptr;
  in_ranges(cpu::draw, args, count);
  for (int64_t i = 0; i < count; ++i) {
    const Drawn d = draw_sample(args.tables, args.seed, args.start + static_cast<uint64_t>(i));
    expect(index[i] == d.index && partner[i] == d.partner && group[i] == d.group && lam[i] == d.lam, "draw differs");
    expect(args.flip_bits == nullptr || flip_bits[i] == d.flip_bits, "draw: flip bits differ");
    expect(0 <= d.index && d.index < examples && 0 <= d.partner && d.partner < examples, "draw: out of range");
  }
  expect(cpu::first_outside(index.data(), count, examples) == -1, "first_outside: none is");
  if (count > 0) {
    const int64_t at = rng.in(0, count - 1);
    index[at] = rng.one_in(2) ? -1 : examples;
    expect(cpu::first_outside(index.data(), count, examples) == at, "first_outside: one is");
  }
}

void tables_case() {
  int64_t examples = 0;
  std::vector<int64_t> made = random_tables(&examples);
  const int64_t odd[] = {0, -1, 1, INT64_MAX, INT64_MIN, int64_t{1} << 31, (int64_t{1} << 31) + 1, int64_t{1} << 62};
  for (int64_t k = rng.in(1, 4); k > 0; --k) {
    int64_t& word = made[rng.in(0, kHeader - 1)];
    word = rng.one_in(2) ? odd[rng.in(0, 7)] : static_cast<int64_t>(static_cast<uint64_t>(word) + rng.in(-2, 2));
  }
  if (rng.one_in(3)) made.resize(rng.in(0, static_cast<int64_t>(made.size())));
  Array<int64_t> packed(static_cast<int64_t>(made.size()), [&](int64_t i) { return made[i]; });
  Tables t = {};
  if (view_tables(packed.data(), packed.size(), &t) != nullptr) return;
  const int64_t* end = packed.data() + packed.size();
  expect(t.quantile + kQuantiles == end, "view_tables: the sections do not fill the tables");
  expect(packed.data() + kHeader + t.period == t.share && t.offsets + t.num_groups + 1 == t.row_of, "view_tables");
}

// ---- rows and labels

void rows_case() {
  cpu::MixRows m = {};
  m.columns = rng.one_in(4) ? rng.in(400, 1100) : rng.one_in(3) ? 16 * rng.in(1, 12) : rng.in(0, 100);
  m.rows_format = kFormats[rng.in(0, 3)];
  m.format = kFormats[rng.in(0, 3)];
  const int64_t total = rng.in(1, 6), batch = rng.in(0, 6);
  m.row_stride = m.columns + (rng.one_in(3) ? rng.in(1, 20) : 0);
  Numbers rows(m.rows_format, (total - 1) * m.row_stride + m.columns);
  for (int64_t i = 0; i < (total - 1) * m.row_stride + m.columns; ++i) rows.set(i, rng.between(-4.0f, 4.0f));
  Array<int64_t> index(batch, [&](int64_t) { return rng.in(0, total - 1); });
  Array<int64_t> partner(batch, [&](int64_t) { return rng.in(0, total - 1); });
  Array<float> lam(batch, [](int64_t) { return random_lam(); });
  Numbers out(m.format, batch * m.columns);
  m.rows = rows.data();
  m.index = index.data();
  m.partner = partner.data();
  m.lam = lam.data();
  m.out = out.data();
  m.stream = rng.one_in(2);
  in_ranges(cpu::mix_rows, m, batch);
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t c = 0; c < m.columns; ++c) {
      const double a = rows.get(index[n] * m.row_stride + c), b = rows.get(partner[n] * m.row_stride + c);
      const double w = lam[n];
      expect(out.near(n * m.columns + c, w * a + (1 - w) * b, 2e-6), "mix_rows differs");
    }
  }
}

void labels_case() {
  cpu::MixLabels m = {};
  m.classes = rng.in(1, rng.one_in(3) ? 1100 : 40);
  m.format = kFormats[rng.in(0, 3)];
  const int64_t batch = rng.in(0, 20);
  Array<int64_t> label(batch, [&](int64_t) { return rng.in(0, m.classes - 1); });
  Array<int64_t> partner(batch, [&](int64_t) { return rng.in(0, m.classes - 1); });
  Array<float> lam(batch, [](int64_t) { return random_lam(); });
  Numbers out(m.format, batch * m.classes);
  m.label = label.data();
  m.partner_label = partner.data();
  m.lam = lam.data();
  m.out = out.data();
  in_ranges(cpu::mix_labels, m, batch);
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t c = 0; c < m.classes; ++c) {
      const double w = lam[n], expected = w * (c == label[n]) + (1 - w) * (c == partner[n]);
      expect(out.near(n * m.classes + c, expected, 1e-6), "mix_labels differs");
    }
  }
}

// ---- the loss and the largest

void loss_case() {
  cpu::CrossEntropy m = {};
  m.classes = rng.one_in(6) ? rng.in(100, 1100) : rng.in(1, rng.one_in(2) ? 5 : 70);
  m.format = kFormats[rng.in(0, 3)];
  m.row_stride = m.classes + (rng.one_in(3) ? rng.in(1, 9) : 0);
  const int64_t batch = rng.in(0, rng.one_in(3) ? 70 : 6),
                entries = std::max<int64_t>(0, (batch - 1) * m.row_stride + m.classes);
  // Ordinary logits are compared with a formula; wild ones only must not break anything.
  const bool wild = rng.one_in(4), wide = m.format == Format::f64;
  const double infinity = std::numeric_limits<double>::infinity();
  const double odd[] = {infinity, -infinity, NAN, 6e4, -6e4, 0.0, 3e38, -3e38};
  Numbers logits(m.format, batch > 0 ? entries : 0);
  for (int64_t i = 0; i < (batch > 0 ? entries : 0); ++i) {
    logits.set(i, wild && rng.one_in(3) ? odd[rng.in(0, 7)] : rng.between(-9.0f, 9.0f));
  }
  Array<int64_t> label(batch, [&](int64_t) { return rng.in(0, m.classes - 1); });
  Array<int64_t> partner(batch, [&](int64_t i) { return rng.one_in(3) ? label[i] : rng.in(0, m.classes - 1); });
  Array<float> lam(batch, [](int64_t) { return random_lam(); });
  const Format result = wide ? Format::f64 : Format::f32;
  Numbers loss(result, batch), logsumexp(result, batch), loss2(result, batch);
  m.logits = logits.data();
  m.label = label.data();
  m.partner_label = partner.data();
  m.lam = lam.data();
  m.label_smoothing = rng.one_in(2) ? 0.0 : static_cast<double>(rng.unit());
  m.loss = loss.data();
  m.logsumexp = logsumexp.data();
  in_ranges(cpu::cross_entropy, m, batch);

  cpu::CrossEntropyBackward b = {};
  b.logits = m.logits;
  b.row_stride = m.row_stride;
  b.classes = m.classes;
  b.format = m.format;
  b.label = m.label;
  b.partner_label = m.partner_label;
  b.lam = m.lam;
  b.label_smoothing = m.label_smoothing;
  b.logsumexp = m.logsumexp;
  b.grad_stride = rng.in(0, 2);
  b.factor = static_cast<double>(rng.unit());
  Numbers grad(result, batch > 0 ? (batch - 1) * b.grad_stride + 1 : 0), grad_logits(m.format, batch * m.classes);
  for (int64_t i = 0; batch > 0 && i <= (batch - 1) * b.grad_stride; ++i) grad.set(i, rng.between(-2.0f, 2.0f));
  b.grad = grad.data();
  b.grad_logits = grad_logits.data();
  in_ranges(cpu::cross_entropy_backward, b, batch);

  const bool direct = m.format == Format::f32 || wide;
  Numbers own_grad(m.format, direct ? batch * m.classes : 0);
  if (direct) {
    cpu::CrossEntropyWithGrad g = {m, b.factor, own_grad.data()};
    g.forward.loss = loss2.data();
    g.forward.logsumexp = nullptr;
    in_ranges(cpu::cross_entropy_with_grad, g, batch);
  }

  Array<int64_t> best(batch);
  const cpu::Argmax largest = {m.logits, m.row_stride, m.classes, m.format, best.data()};
  in_ranges(cpu::argmax, largest, batch);
  for (int64_t n = 0; n < batch; ++n) {
    const auto logit = [&](int64_t c) { return logits.get(n * m.row_stride + c); };
    int64_t expected = 0;
    for (int64_t c = 1; c < m.classes; ++c) {
      const double top = logit(expected), v = logit(c);
      if (!std::isnan(top) && (std::isnan(v) || v > top)) expected = c;
    }
    expect(best[n] == expected, "argmax differs");
    if (wild) continue;
    double sum = 0, smooth = 0;
    for (int64_t c = 0; c < m.classes; ++c) sum += std::exp(logit(c));
    const double lse = std::log(sum), w = lam[n], s = m.label_smoothing, share = s / static_cast<double>(m.classes);
    for (int64_t c = 0; c < m.classes; ++c) smooth += share * (lse - logit(c));
    const double value = (1 - s) * (w * (lse - logit(label[n])) + (1 - w) * (lse - logit(partner[n]))) + smooth;
    expect(loss.near(n, value, 2e-4) && logsumexp.near(n, lse, 1e-4), "cross_entropy differs");
    expect(!direct || loss2.near(n, value, 2e-4), "cross_entropy_with_grad: the loss differs");
    for (int64_t c = 0; c < m.classes; ++c) {
      const double target = (1 - s) * (w * (c == label[n]) + (1 - w) * (c == partner[n])) + share;
      const double slope = (std::exp(logit(c) - lse) - target) * b.factor;
      expect(grad_logits.near(n * m.classes + c, slope * grad.get(n * b.grad_stride), 2e-4), "backward differs");
      expect(!direct || own_grad.near(n * m.classes + c, slope, 2e-4), "cross_entropy_with_grad differs");
    }
  }
}

// ---- the counting sort

template <class T>
void put(char* at, int64_t value) {
  const T v = static_cast<T>(value);
  std::memcpy(at, &v, sizeof(T));
}

void put(host::Kind kind, char* at, int64_t value) {
  switch (kind) {
    case host::Kind::i8: return put<int8_t>(at, value);
    case host::Kind::u8: return put<uint8_t>(at, value);
    case host::Kind::i16: return put<int16_t>(at, value);
    case host::Kind::u16: return put<uint16_t>(at, value);
    case host::Kind::i32: return put<int32_t>(at, value);
    case host::Kind::u32: return put<uint32_t>(at, value);
    case host::Kind::i64: return put<int64_t>(at, value);
    case host::Kind::u64: return put<uint64_t>(at, value);
  }
}

template <class Member>
void cells_case() {
  const int64_t count = rng.one_in(12) ? rng.in(30000, 70000) : rng.in(0, 300), columns = rng.in(1, 3);
  const int threads = static_cast<int>(rng.in(0, 5));
  std::vector<std::unique_ptr<Bytes>> memory;
  std::vector<std::vector<int64_t>> values(columns);
  std::vector<host::Column> described;
  const bool bad = count > 0 && rng.one_in(10);
  for (int64_t k = 0; k < columns; ++k) {
    const host::Kind kind = static_cast<host::Kind>(rng.in(0, 7));
    const int64_t bytes = int64_t{1} << (static_cast<int>(kind) / 2);
    const bool has_sign = static_cast<int>(kind) % 2 == 0;
    // Up to 2^20 values a column: three of them are beyond plain histograms and below 2^63.
    const int64_t span = rng.in(1, rng.one_in(2) ? 5 : bytes == 1 ? 100 : bytes == 2 ? 30000 : 1 << 20);
    const int64_t low = has_sign ? rng.in(-20, 7) : rng.in(0, 20);
    int64_t step = bytes * rng.in(1, 3) + (rng.one_in(4) ? rng.in(0, 3) : 0);  // fields of records are unaligned
    memory.push_back(std::make_unique<Bytes>(count > 0 ? (count - 1) * step + bytes : 0));
    char* start = memory.back()->data();
    if (count > 0 && rng.one_in(4)) {
      start += (count - 1) * step;
      step = -step;
    }
    for (int64_t i = 0; i < count; ++i) {
      values[k].push_back(low + rng.in(0, span - 1));
      put(kind, start + i * step, values[k].back());
    }
    if (bad && k == columns - 1) put(kind, start + rng.in(0, count - 1) * step, low + span);
    described.push_back({start, step, kind, low, static_cast<uint64_t>(span)});
  }
  Array<Member> members(count);
  host::Cells cells;
  try {
    cells = host::group_cells<Member>(described, count, threads, members.data());
  } catch (const std::out_of_range&) {
    expect(bad, "group_cells: no value was out of range");
    return;
  }
  expect(!bad, "group_cells: a value out of range was not noticed");
  std::vector<uint64_t> keys(count, 0);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < columns; ++k) {
      keys[i] = keys[i] * described[k].span + static_cast<uint64_t>(values[k][i] - described[k].low);
    }
  }
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
  expect(std::equal(order.begin(), order.end(), members.data()), "group_cells: order differs");
  expect(cells.identity == std::is_sorted(order.begin(), order.end()), "group_cells: identity");
  int64_t at = 0;
  for (size_t c = 0; c < cells.keys.size(); ++c) {
    expect(cells.counts[c] > 0 && (c == 0 || cells.keys[c - 1] < cells.keys[c]), "group_cells: cells");
    for (int64_t i = 0; i < cells.counts[c]; ++i) expect(keys[order[at++]] == cells.keys[c], "group_cells: counts");
  }
  expect(at == count, "group_cells: counts do not add up");
}

// ---- texts

#include "tokens_case.h"

// ---- token embeddings

#include "text_case.h"

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
