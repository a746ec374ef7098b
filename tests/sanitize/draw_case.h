// draw and view_tables. Included by driver.cpp.

int64_t double_bits(double value) {
  int64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Appends the running sums of `count` equal weights, as runs of random lengths.
void add_sums(int64_t count, std::vector<int64_t>* lists) {
  const size_t head = lists->size();
  lists->push_back(0);
  lists->push_back(double_bits(static_cast<double>(count)));
  for (int64_t begin = 0; begin < count; begin += rng.in(1, count)) {
    ++(*lists)[head];
    for (int64_t word : {begin, double_bits(static_cast<double>(begin + 1)), double_bits(1.0)}) lists->push_back(word);
  }
}

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
  const bool sums = rng.one_in(3);
  std::vector<int64_t> row_of, row_words, lists, quantile;
  for (int64_t g = 0; g < groups; ++g) row_of.push_back(rng.in(-1, rows - 1));
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<int64_t> chosen;
    for (int64_t g = 0; g < groups; ++g) {
      if (sizes_of_groups[g] > 0 && !rng.one_in(3)) chosen.push_back(g);
    }
    for (int64_t g = 0; g < groups && chosen.empty(); ++g) {  // use the first group with members
      if (sizes_of_groups[g] > 0) chosen.push_back(g);
    }
    const int64_t count = static_cast<int64_t>(chosen.size());
    row_words.push_back(static_cast<int64_t>(lists.size()) << 32 | count);
    if (sums) {
      add_sums(count, &lists);
    } else {
      for (int64_t k = 1; k <= count; ++k) lists.push_back((int64_t{1} << 32) * k / count);
    }
    // Slices of the groups, in any places of the lists.
    std::vector<int64_t> begins = {0};
    for (int64_t k = 2; k < kRowWords; ++k) begins.push_back(rng.in(begins.back(), count));
    for (size_t k = 0; k < begins.size(); ++k) {
      if (rng.one_in(3)) lists.push_back(-1);  // a word that no row uses
      row_words.push_back(begins[k] << 32 | static_cast<int64_t>(lists.size()));
      const int64_t end = k + 1 < begins.size() ? begins[k + 1] : count;
      lists.insert(lists.end(), chosen.begin() + begins[k], chosen.begin() + end);
    }
  }
  for (int64_t k = 0; k < kQuantiles; ++k) quantile.push_back(rng.in(0, 1 << 24));
  std::sort(quantile.begin(), quantile.end());

  const std::vector<const std::vector<int64_t>*> sections = {&slots,  &share,     &first, &size,    &offsets,
                                                             &row_of, &row_words, &lists, &quantile};
  *examples = offsets.back();
  std::vector<int64_t> packed(kHeaderWords, 0);
  const int64_t words[] = {kMagic,
                           0,
                           *examples,
                           groups,
                           strata,
                           static_cast<int64_t>(slots.size()),
                           rows,
                           rng.in(0, 3) + (sums ? kFlagSums : 0),
                           static_cast<int64_t>(lists.size())};
  std::copy(std::begin(words), std::end(words), packed.begin());
  packed[kWordLength] = kHeaderWords;
  for (const auto* section : sections) packed[kWordLength] += static_cast<int64_t>(section->size());
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
  for (int64_t i = 0; i < count; ++i) {
    const Drawn d = draw_sample(args.tables, args.seed, args.start + static_cast<uint64_t>(i));
    const bool in_range = 0 <= d.index && d.index < examples && 0 <= d.partner && d.partner < examples;
    expect(in_range && (d.group >= 0 || std::isnan(d.lam)), "altered tables: a sample is out of range");
  }
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
