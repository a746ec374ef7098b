// Random inputs: numbers, memory of exact size, and arrays of a format. Included by driver.cpp.

std::string current_case;  // for messages

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "sanitize: %s: %s\n", current_case.c_str(), message.c_str());
  std::exit(1);
}

void expect(bool condition, const char* message) {
  if (!condition) fail(message);
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

// Memory of exactly `size` bytes: from malloc, or adjacent to an inaccessible page at its begin or end.
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

// An array of numbers of a format.
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
  // Whether entry i equals `expected` within the rounding of the format and `tolerance`.
  bool near(int64_t i, double expected, double tolerance) {
    const double step = format == Format::f64   ? 1e-15
                        : format == Format::f32 ? 1e-6
                        : format == Format::f16 ? 1e-3
                                                : 8e-3;
    const double got = get(i);
    if (std::isnan(expected)) return std::isnan(got);
    if (std::isinf(expected)) return got == expected;
    return std::abs(got - expected) <= tolerance + step * std::abs(expected) + 1e-7;
  }
};

constexpr Format kFormats[] = {Format::f32, Format::f16, Format::bf16, Format::f64};

float random_lam() {
  const float special[] = {0.0f, 1.0f, 0.5f, 1.0f};
  return rng.one_in(4) ? special[rng.in(0, 3)] : rng.unit();
}

// Runs a kernel on [0, items) in three ranges, the last one first.
template <class Args, class Result>
void in_ranges(Result (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t items) {
  const int64_t a = rng.in(0, items), b = rng.in(a, items);
  kernel(args, b, items);
  kernel(args, a, b);
  kernel(args, 0, a);
}
