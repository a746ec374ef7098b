// pair_lengths and pack_texts. Included by driver.cpp.

void tokens_case() {
  const int64_t count = rng.in(1, 40), batch = rng.in(0, 20), first = rng.in(0, 3);
  Array<int64_t> offsets(count + 1);
  offsets[0] = first;
  for (int64_t t = 0; t < count; ++t) offsets[t + 1] = offsets[t] + rng.in(0, 12);
  const int64_t total = offsets[count];
  Array<int32_t> ids(total, [](int64_t) { return rng.in(0, 5); });
  host::Texts texts = {ids.data(), offsets.data(), total, count, rng.in(1, 14), rng.in(-1, 5)};
  const auto length = [&](int64_t row) { return std::min(offsets[row + 1] - offsets[row], texts.limit); };
  Array<int64_t> rows(batch, [&](int64_t) { return rng.in(0, count - 1); });
  Array<int64_t> partner(batch, [&](int64_t) { return rng.in(0, count - 1); });
  int64_t width = 0;
  for (int64_t i = 0; i < batch; ++i) width = std::max(width, length(rows[i]));
  // Every kind of damage must be detected before the damaged value is used.
  const int64_t damage = batch > 0 && rng.one_in(3) ? rng.in(0, 3) : -1, at = damage >= 0 ? rng.in(0, batch - 1) : 0;
  if (damage == 0) rows[at] = rng.one_in(2) ? count + rng.in(0, int64_t{1} << 40) : -rng.in(1, int64_t{1} << 40);
  if (damage == 1) offsets[rows[at]] = offsets[rows[at] + 1] + rng.in(1, int64_t{1} << 40);
  if (damage == 2) offsets[rows[at] + 1] = total + rng.in(1, int64_t{1} << 40);
  if (damage == 3) offsets[rows[at]] = -rng.in(1, int64_t{1} << 40);
  width += rng.in(0, 3);
  Array<int32_t> lengths(batch);
  Array<int64_t> out(batch * width);
  Array<uint8_t> mask(batch * width);
  for (const bool packing : {false, true}) {
    try {
      if (packing) {
        host::pack_texts(texts, rows.data(), batch, width, -7, out.data(), mask.data());
      } else {
        host::pair_lengths(texts, rows.data(), partner.data(), batch, lengths.data());
      }
      expect(damage < 0, "tokens: damage was not detected");
    } catch (const std::out_of_range&) {
      expect(damage >= 0, "tokens: a valid input was rejected");
    }
  }
  if (damage >= 0) return;
  for (int64_t i = 0; i < batch; ++i) {
    expect(lengths[i] == std::max(length(rows[i]), length(partner[i])), "pair_lengths differs");
    const int64_t begin = offsets[rows[i]], end = offsets[rows[i] + 1], kept = length(rows[i]);
    const bool closed = kept < end - begin && ids[end - 1] == texts.closing;
    for (int64_t s = 0; s < width; ++s) {
      const int64_t id = s >= kept ? -7 : closed && s == kept - 1 ? texts.closing : ids[begin + s];
      expect(out[i * width + s] == id && mask[i * width + s] == (s < kept), "pack_texts differs");
    }
  }
  if (batch > 0 && width > 0) {
    bool detected = false;
    int64_t longest = 0;
    for (int64_t i = 0; i < batch; ++i) longest = std::max(longest, length(rows[i]));
    try {
      host::pack_texts(texts, rows.data(), batch, longest - 1, 0, out.data(), mask.data());
    } catch (const std::out_of_range&) {
      detected = true;
    }
    expect(detected || longest == 0, "pack_texts accepts a text longer than the width");
  }
}
