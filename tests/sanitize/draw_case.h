// draw and view_tables. Included by driver.cpp.

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
    for (int64_t g = 0; g < groups && sum == 0; ++g) {  // no group was chosen: use the first one with members
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
  std::vector<int64_t> packed = {kMagic, 0,           *examples, groups, strata, static_cast<int64_t>(slots.size()),
                                 rows,   rng.in(0, 3)};
  int64_t at = kHeaderWords;
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
  const std::vector<int64_t> words = random_tables(&examples);
  Array<int64_t> packed(static_cast<int64_t>(words.size()), [&](int64_t i) { return words[i]; });
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
  expect(cpu::first_outside(index.data(), count, examples) == -1, "first_outside: no value is out of range");
  if (count > 0) {
    const int64_t at = rng.in(0, count - 1);
    index[at] = rng.one_in(2) ? -1 : examples;
    expect(cpu::first_outside(index.data(), count, examples) == at,
           "first_outside: the value out of range was not found");
  }
}

// Any word of a section has any value: draw rejects the tables, or draws examples.
void altered_tables_case() {
  int64_t examples = 0;
  std::vector<int64_t> words = random_tables(&examples);
  const int64_t odd[] = {0, -1, 1, INT64_MAX, INT64_MIN, int64_t{1} << 31, int64_t{1} << 32, int64_t{1} << 62};
  for (int64_t k = rng.in(1, 4); k > 0; --k) {
    int64_t& word = words[rng.in(kHeaderWords, static_cast<int64_t>(words.size()) - kQuantiles - 1)];
    word = rng.one_in(2) ? odd[rng.in(0, 7)] : static_cast<int64_t>(static_cast<uint64_t>(word) + rng.in(-2, 2));
  }
  Array<int64_t> packed(static_cast<int64_t>(words.size()), [&](int64_t i) { return words[i]; });
  cpu::Draw args = {};
  expect(view_tables(packed.data(), packed.size(), &args.tables) == nullptr, "the header is valid");
  const int64_t count = rng.in(1, 300);
  Array<int64_t> index(count), partner(count), group(count);
  Array<float> lam(count);
  args.index = index.data();
  args.partner = partner.data();
  args.group = group.data();
  args.lam = lam.data();
  args.seed = rng.bits() >> 1;
  args.start = static_cast<uint64_t>(rng.in(0, 1000));
  if (!cpu::draw(args, 0, count)) return;
  expect(cpu::first_outside(index.data(), count, examples) == -1, "altered tables: the index is out of range");
  expect(cpu::first_outside(partner.data(), count, examples) == -1, "altered tables: the partner is out of range");
}

void tables_case() {
  int64_t examples = 0;
  std::vector<int64_t> words = random_tables(&examples);
  const int64_t odd[] = {0, -1, 1, INT64_MAX, INT64_MIN, int64_t{1} << 31, (int64_t{1} << 31) + 1, int64_t{1} << 62};
  for (int64_t k = rng.in(1, 4); k > 0; --k) {
    int64_t& word = words[rng.in(0, kHeaderWords - 1)];
    word = rng.one_in(2) ? odd[rng.in(0, 7)] : static_cast<int64_t>(static_cast<uint64_t>(word) + rng.in(-2, 2));
  }
  if (rng.one_in(3)) words.resize(rng.in(0, static_cast<int64_t>(words.size())));
  Array<int64_t> packed(static_cast<int64_t>(words.size()), [&](int64_t i) { return words[i]; });
  Tables t = {};
  if (view_tables(packed.data(), packed.size(), &t) != nullptr) return;
  const int64_t* end = packed.data() + packed.size();
  expect(t.quantile + kQuantiles == end, "view_tables: the sections do not fill the tables");
  expect(packed.data() + kHeaderWords + t.period == t.share && t.offsets + t.num_groups + 1 == t.row_of,
         "view_tables: sections are in the wrong place");
}
