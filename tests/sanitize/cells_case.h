// group_cells, the counting sort of group indices. Included by driver.cpp.

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
    // Up to 2^20 values per column: three columns exceed the size of plain histograms, but stay below 2^63.
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
    expect(bad, "group_cells reports a value that is in range");
    return;
  }
  expect(!bad, "group_cells accepts a value out of range");
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
