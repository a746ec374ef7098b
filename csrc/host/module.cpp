// The Python module `_host`: helpers on NumPy arrays, free of torch, and the shared draw code, which the tests compare.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <vector>

#include "../draw.h"
#include "../pixel.h"
#include "crc32.h"
#include "group_cells.h"
#include "logistic.h"
#include "pixels.h"
#include "read_rows.h"
#include "tokens.h"

namespace py = pybind11;
using spurmix::host::Cells;
using spurmix::host::Column;
using spurmix::host::Kind;
using Longs = py::array_t<int64_t, py::array::c_style>;

namespace {

Kind kind_of(const py::array& column) {
  const bool is_signed = column.dtype().kind() == 'i';
  if (!is_signed && column.dtype().kind() != 'u') throw py::type_error("columns must be integer arrays");
  switch (column.itemsize()) {
    case 1: return is_signed ? Kind::i8 : Kind::u8;
    case 2: return is_signed ? Kind::i16 : Kind::u16;
    case 4: return is_signed ? Kind::i32 : Kind::u32;
    default: return is_signed ? Kind::i64 : Kind::u64;
  }
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple group_cells(const std::vector<py::array>& arrays, const std::vector<int64_t>& low,
                      const std::vector<uint64_t>& span, py::array members, int threads) {
  if (arrays.empty() || low.size() != arrays.size() || span.size() != arrays.size()) {
    throw py::value_error("columns, low and span must have the same positive length");
  }
  const int64_t count = arrays[0].ndim() == 1 ? arrays[0].shape(0) : -1;
  std::vector<Column> columns;
  for (size_t k = 0; k < arrays.size(); ++k) {
    if (arrays[k].ndim() != 1 || arrays[k].shape(0) != count)
      throw py::value_error("columns must be one-dimensional and of the same length");
    columns.push_back(
        {static_cast<const char*>(arrays[k].data()), arrays[k].strides(0), kind_of(arrays[k]), low[k], span[k]});
  }
  const bool fits = members.ndim() == 1 && members.shape(0) == count && (members.flags() & py::array::c_style);
  if (!fits || members.dtype().kind() != 'i' || (members.itemsize() != 4 && members.itemsize() != 8)) {
    throw py::value_error("members must be a contiguous int32 or int64 array with one entry per row");
  }
  if (members.itemsize() == 4 && count > INT32_MAX)
    throw py::value_error("members must be int64 for more than 2^31 - 1 rows");
  Cells cells;
  void* out = members.mutable_data();
  const bool narrow = members.itemsize() == 4;  // needs the GIL
  {
    py::gil_scoped_release release;
    cells = narrow ? group_cells(columns, count, threads, static_cast<int32_t*>(out))
                   : group_cells(columns, count, threads, static_cast<int64_t*>(out));
  }
  return py::make_tuple(to_array(cells.keys), to_array(cells.counts), cells.identity);
}

using Ints = py::array_t<int32_t, py::array::c_style>;

spurmix::host::Texts texts_of(const Ints& ids, const Longs& offsets, int64_t limit, int64_t closing) {
  if (ids.ndim() != 1 || offsets.ndim() != 1 || offsets.size() == 0) {
    throw py::value_error("ids must be [T] and offsets [N + 1]");
  }
  if (limit < 1) throw py::value_error("limit must be 1 or more");
  return {ids.data(), offsets.data(), ids.size(), offsets.size() - 1, limit, closing};
}

Ints pair_lengths(const Ints& ids, const Longs& offsets, const Longs& index, const Longs& partner, int64_t limit) {
  const spurmix::host::Texts texts = texts_of(ids, offsets, limit, -1);
  if (index.size() != partner.size()) throw py::value_error("index and partner must have the same length");
  Ints out(index.size());
  const int64_t *first = index.data(), *second = partner.data();
  const int64_t count = index.size();
  int32_t* to = out.mutable_data();
  {
    py::gil_scoped_release release;
    spurmix::host::pair_lengths(texts, first, second, count, to);
  }
  return out;
}

void pack_texts(const Ints& ids, const Longs& offsets, const Longs& rows, int64_t limit, int64_t closing, int64_t pad,
                Longs out, py::array_t<bool, py::array::c_style> mask) {
  const spurmix::host::Texts texts = texts_of(ids, offsets, limit, closing);
  if (out.ndim() != 2 || mask.ndim() != 2 || out.shape(0) != rows.size() || mask.shape(0) != rows.size() ||
      mask.shape(1) != out.shape(1)) {
    throw py::value_error("out and mask must be [B, S] for B rows");
  }
  const int64_t *chosen = rows.data(), count = rows.size(), width = out.shape(1);
  int64_t* to = out.mutable_data();
  uint8_t* marks = reinterpret_cast<uint8_t*>(mask.mutable_data());
  py::gil_scoped_release release;
  spurmix::host::pack_texts(texts, chosen, count, width, pad, to, marks);
}

std::vector<uint32_t> philox(const std::vector<uint32_t>& counter, uint64_t key) {
  if (counter.size() != 4) throw py::value_error("counter must have four words");
  const spurmix::Words words = spurmix::philox(key, counter[0], counter[1], counter[2], counter[3]);
  return {words.v, words.v + 4};
}

Longs permute(const Longs& positions, uint64_t m, uint64_t seed, uint32_t stratum, uint64_t cycle) {
  const spurmix::Words key = spurmix::stratum_key(seed, stratum, cycle);
  Longs out(positions.size());
  for (py::ssize_t i = 0; i < positions.size(); ++i) {
    const uint64_t p = static_cast<uint64_t>(positions.at(i));
    if (p >= m) throw py::value_error("positions must be in [0, m)");
    out.mutable_at(i) = static_cast<int64_t>(spurmix::permute(p, m, key));
  }
  return out;
}

Longs sums_at_most(const Longs& list, int64_t count, const Longs& words) {
  spurmix::Tables view = {};
  view.lists = list.data();
  view.list_words = list.size();
  Longs out(words.size());
  for (py::ssize_t i = 0; i < words.size(); ++i) {
    out.mutable_at(i) = spurmix::sums_at_most(view, 0, count, static_cast<uint32_t>(words.at(i)));
  }
  return out;
}

py::tuple draw(const Longs& tables, const Longs& members, uint64_t seed, uint64_t start, int64_t count) {
  spurmix::Tables view;
  const char* problem = spurmix::view_tables(tables.data(), tables.size(), &view);
  if (problem != nullptr) throw py::value_error(problem);
  if (members.size() != 0 && members.size() != view.num_examples)
    throw py::value_error("members must have one entry per example");
  view.members64 = members.size() ? members.data() : nullptr;
  Longs index(count), partner(count), group(count);
  py::array_t<float> lam(count);
  py::array_t<uint32_t> flip_bits(count);
  for (int64_t i = 0; i < count; ++i) {
    const spurmix::Drawn d = spurmix::draw_sample(view, seed, start + static_cast<uint64_t>(i));
    if (d.group < 0) throw py::value_error("a section has values that draw tables cannot have");
    index.mutable_at(i) = d.index;
    partner.mutable_at(i) = d.partner;
    group.mutable_at(i) = d.group;
    lam.mutable_at(i) = d.lam;
    flip_bits.mutable_at(i) = d.flip_bits;
  }
  return py::make_tuple(index, partner, lam, group, flip_bits);
}

py::array_t<float> boxes(uint64_t seed, uint64_t start, int64_t count, int64_t height, int64_t width, float scale_low,
                         float scale_high, double ratio_low, double ratio_high) {
  const spurmix::Crop crop = {
      true, scale_low, scale_high, static_cast<float>(std::log(ratio_low)), static_cast<float>(std::log(ratio_high)),
      false};
  py::array_t<float> out({count, int64_t{2}, int64_t{4}});
  auto view = out.mutable_unchecked<3>();
  for (int64_t i = 0; i < count; ++i) {
    for (uint32_t side = 0; side < 2; ++side) {
      const spurmix::Words words = spurmix::sample_words(seed, start + static_cast<uint64_t>(i), 2 + side);
      const spurmix::Box b = spurmix::crop_box(words, crop, height, width);
      const float values[4] = {b.top, b.left, b.height, b.width};
      for (int k = 0; k < 4; ++k) view(i, side, k) = values[k];
    }
  }
  return out;
}

// Whether each sample's index and partner are flipped, uint8 [count, 2].
py::array_t<uint8_t> flips(uint64_t seed, uint64_t start, int64_t count) {
  py::array_t<uint8_t> out({count, int64_t{2}});
  auto view = out.mutable_unchecked<2>();
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = spurmix::sample_words(seed, start + static_cast<uint64_t>(i), 1).v[3];
    view(i, 0) = bits & 1;
    view(i, 1) = (bits >> 1) & 1;
  }
  return out;
}

Longs read_rows(int fd, int direct, int64_t begin, int64_t row_bytes, const Longs& rows,
                py::array_t<uint8_t, py::array::c_style> out, int threads) {
  const int64_t count = rows.size();
  const spurmix::host::RowFile file = {fd, direct, begin, row_bytes};
  // A copy, because another thread may write to the array once the GIL is released.
  const std::vector<int64_t> checked(rows.data(), rows.data() + count);
  if (begin < 0 || row_bytes < 1) throw py::value_error("begin must be 0 or more, row_bytes 1 or more");
  if (count > 0 && row_bytes > out.size()) throw py::value_error("out must have at least the bytes of one row");
  for (int64_t k = 0; k < count; ++k) {
    const int64_t last = (INT64_MAX - begin) / row_bytes - 1;
    if (checked[k] < 0 || checked[k] > last) {
      throw py::index_error("rows: row " + std::to_string(checked[k]) + " is out of range");
    }
    if (k > 0 && checked[k - 1] >= checked[k]) throw py::value_error("rows must be in ascending order");
  }
  Longs places(count);
  const int64_t needed = spurmix::host::place_rows(file, checked.data(), count, places.mutable_data());
  if (out.size() < needed) {
    throw py::value_error("out must have at least " + std::to_string(needed) + " bytes, got " +
                          std::to_string(out.size()));
  }
  uint8_t* to = out.mutable_data();
  if (direct >= 0 && reinterpret_cast<uintptr_t>(to) % spurmix::host::kPage != 0) {
    throw py::value_error("out must start on a page to read past the page cache");
  }
  int error = 0;
  int64_t failed = -1;
  {
    py::gil_scoped_release release;
    failed = spurmix::host::read_rows(file, checked.data(), places.data(), count, threads, to, &error);
  }
  if (failed < 0) return places;
  errno = error != 0 ? error : EIO;
  PyErr_SetFromErrno(PyExc_OSError);
  throw py::error_already_set();
}

// The CRC-32 of bytes [begin, begin + size) of a file, and the number of these bytes that the file has.
std::pair<uint32_t, int64_t> file_crc32(int fd, int64_t begin, int64_t size) {
  if (begin < 0 || size < 0) throw py::value_error("begin and size must be 0 or more");
  int64_t count = 0;
  int error = 0;
  uint32_t crc = 0;
  {
    py::gil_scoped_release release;
    crc = spurmix::host::file_crc32(fd, begin, size, &count, &error);
  }
  if (error == 0) return {crc, count};
  errno = error;
  PyErr_SetFromErrno(PyExc_OSError);
  throw py::error_already_set();
}

uint32_t crc32(const py::buffer& data, uint32_t crc) {
  const py::buffer_info info = data.request();
  if (info.ndim != 1 || info.itemsize != 1 || (info.size > 1 && info.strides[0] != 1)) {
    throw py::type_error("data must be a contiguous buffer of bytes");
  }
  py::gil_scoped_release release;
  return spurmix::host::crc32(crc, static_cast<const uint8_t*>(info.ptr), info.size);
}

uint32_t crc32_joined(uint32_t first, uint32_t second, int64_t size) {
  if (size < 0) throw py::value_error("size must be 0 or more");
  return spurmix::host::crc32_joined(first, second, size);
}

// The array of Arrow's C data interface.
struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void** buffers;
  ArrowArray** children;
  ArrowArray* dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};

// Copies an RGB image of Pillow, which Image.__arrow_c_array__ returns with four bytes per pixel, to byte `at` of
// `out`. Returns the CRC-32 `crc` of the preceding bytes, continued with the copied ones.
uint32_t pack_rgb(const py::capsule& image, int64_t count, py::array_t<uint8_t, py::array::c_style> out, int64_t at,
                  uint32_t crc) {
  if (std::strcmp(image.name() != nullptr ? image.name() : "", "arrow_array") != 0) {
    throw py::type_error("image must be an arrow_array");
  }
  const auto* array = image.get_pointer<ArrowArray>();
  const bool list = array->release != nullptr && array->n_children == 1 && array->offset == 0;
  const ArrowArray* bytes = list ? array->children[0] : nullptr;
  if (bytes == nullptr || array->length != count || bytes->length != 4 * count || bytes->offset != 0 ||
      bytes->n_buffers != 2 || bytes->buffers[1] == nullptr) {
    throw py::value_error("image must have " + std::to_string(count) + " pixels of four bytes");
  }
  if (at < 0 || count > (out.size() - at) / 3) throw py::index_error("out is too small for the pixels");
  uint8_t* to = out.mutable_data() + at;
  py::gil_scoped_release release;
  return spurmix::host::pack_rgb(static_cast<const uint8_t*>(bytes->buffers[1]), count, to, crc);
}

// Converts each float to float16 or bfloat16 and back, with the conversions of pixel.h.
py::array_t<float> round_trip(const py::array_t<float, py::array::c_style>& values, bool bfloat16) {
  py::array_t<float> out(values.size());
  for (py::ssize_t i = 0; i < values.size(); ++i) {
    const float v = values.data()[i];
    out.mutable_data()[i] =
        bfloat16 ? spurmix::from_bfloat16(spurmix::to_bfloat16(v)) : spurmix::from_half(spurmix::to_half(v));
  }
  return out;
}

template <class T>
using Vector = py::array_t<T, py::array::c_style>;

template <class T>
const T* optional_rows(const std::optional<Vector<T>>& values, int64_t count, const char* message) {
  if (!values) return nullptr;
  if (values->ndim() != 1 || values->shape(0) != count) throw py::value_error(message);
  return values->data();
}

void check_rows(const int64_t* rows, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i)
    if (rows[i] < 0 || rows[i] >= limit) throw py::index_error("a row is outside x");
}

py::tuple logistic_path(const Vector<float>& x, const Vector<float>& mean, const Vector<float>& inverse_scale,
                        const Longs& index, const std::optional<Longs>& partner,
                        const std::optional<Vector<float>>& share, const Vector<int32_t>& label, int64_t num_classes,
                        const std::vector<double>& l1, const std::vector<double>& l2, double tolerance,
                        int max_iterations) {
  if (x.ndim() != 2 || mean.ndim() != 1 || mean.shape(0) != x.shape(1) || inverse_scale.ndim() != 1 ||
      inverse_scale.shape(0) != x.shape(1))
    throw py::value_error("x must be [N, D], mean and inverse_scale [D]");
  if (index.ndim() != 1 || label.ndim() != 1 || label.shape(0) != index.shape(0) ||
      partner.has_value() != share.has_value())
    throw py::value_error("index and label must be [n], and partner and share both [n] or None");
  if (num_classes < 2 || l1.size() != l2.size() || max_iterations < 1)
    throw py::value_error("num_classes must be 2 or more, l1 and l2 equally long, max_iterations 1 or more");
  const int64_t count = index.shape(0), classes = num_classes;
  const char* message = "partner and share must be [n]";
  const spurmix::host::LogisticRows rows{x.data(),
                                         mean.data(),
                                         inverse_scale.data(),
                                         x.shape(1),
                                         index.data(),
                                         optional_rows(partner, count, message),
                                         optional_rows(share, count, message),
                                         label.data(),
                                         count};
  check_rows(rows.index, count, x.shape(0));
  if (rows.partner != nullptr) check_rows(rows.partner, count, x.shape(0));
  for (int64_t i = 0; i < count; ++i)
    if (rows.label[i] < 0 || rows.label[i] >= classes) throw py::index_error("a label is not a class");
  spurmix::host::LogisticPath path;
  {
    py::gil_scoped_release release;
    path = fit_logistic_path(rows, {classes, l1, l2, tolerance, max_iterations});
  }
  return py::make_tuple(to_array(path.weight), to_array(path.objective), to_array(path.iterations));
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Compiled helpers on NumPy arrays.";
  m.def("group_cells", &group_cells, py::arg("columns"), py::arg("low"), py::arg("span"), py::arg("members"),
        py::arg("threads"), "Sort rows by integer columns, stably. Return (keys, counts, identity).");
  // noconvert: outputs must be the caller's own arrays, and a large input must not be copied silently.
  m.def("pair_lengths", &pair_lengths, py::arg("ids").noconvert(), py::arg("offsets").noconvert(), py::arg("index"),
        py::arg("partner"), py::arg("limit"),
        "Number of tokens of the longer text of each pair, int32 [B], at most limit.");
  m.def("pack_texts", &pack_texts, py::arg("ids").noconvert(), py::arg("offsets").noconvert(), py::arg("rows"),
        py::arg("limit"), py::arg("closing"), py::arg("pad"), py::arg("out").noconvert(), py::arg("mask").noconvert(),
        "Write the texts of rows, padded, to out [B, S] and mask.");
  m.def("philox", &philox, py::arg("counter"), py::arg("key"));
  m.def("permute", &permute, py::arg("positions"), py::arg("m"), py::arg("seed"), py::arg("stratum"), py::arg("cycle"));
  m.def("sums_at_most", &sums_at_most, py::arg("list"), py::arg("count"), py::arg("words"));
  m.def("draw", &draw, py::arg("tables"), py::arg("members"), py::arg("seed"), py::arg("start"), py::arg("count"));
  m.def("boxes", &boxes, py::arg("seed"), py::arg("start"), py::arg("count"), py::arg("height"), py::arg("width"),
        py::arg("scale_low"), py::arg("scale_high"), py::arg("ratio_low"), py::arg("ratio_high"));
  m.def("flips", &flips, py::arg("seed"), py::arg("start"), py::arg("count"));
  m.def("read_rows", &read_rows, py::arg("fd"), py::arg("direct"), py::arg("begin"), py::arg("row_bytes"),
        py::arg("rows"), py::arg("out").noconvert(), py::arg("threads"),
        "Read ascending rows of an open file in parallel. Return the offset of each in out.");
  m.def("crc32", &crc32, py::arg("data"), py::arg("crc") = 0u);
  m.def("file_crc32", &file_crc32, py::arg("fd"), py::arg("begin"), py::arg("size"));
  m.def("crc32_joined", &crc32_joined, py::arg("first"), py::arg("second"), py::arg("size"));
  m.def("pack_rgb", &pack_rgb, py::arg("image"), py::arg("count"), py::arg("out").noconvert(), py::arg("at"),
        py::arg("crc") = 0u);
  m.def("logistic_path", &logistic_path, py::arg("x").noconvert(), py::arg("mean"), py::arg("inverse_scale"),
        py::arg("index"), py::arg("partner"), py::arg("share"), py::arg("label"), py::arg("num_classes"), py::arg("l1"),
        py::arg("l2"), py::arg("tolerance"), py::arg("max_iterations"),
        "Fit L1 logistic regressions along a path. Return (weight [L * K * (D + 1)], objective [L], iterations [L]).");
  m.def("round_trip", &round_trip, py::arg("values"), py::arg("bfloat16"));
}
