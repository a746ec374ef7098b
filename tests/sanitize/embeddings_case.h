// The kernels on token embeddings. Included by driver.cpp.

// Token ids of pairs of texts, with optional masks.
struct Tokens {
  int64_t rows, batch, length, count;
  bool masked, partner_masked;
  Array<int64_t> ids, partner_ids;
  Array<float> lam;
  Array<bool> mask, partner_mask;

  Tokens(int64_t rows, int64_t batch, int64_t length)
      : rows(rows),
        batch(batch),
        length(length),
        count(batch * length),
        masked(rng.one_in(2)),
        partner_masked(rng.one_in(2)),
        ids(count, [&](int64_t) { return rng.in(0, rows - 1); }),
        partner_ids(count, [&](int64_t) { return rng.in(0, rows - 1); }),
        lam(batch, [](int64_t) { return random_lam(); }),
        mask(count, [](int64_t) { return rng.in(0, 3) > 0; }),
        partner_mask(count, [](int64_t) { return rng.in(0, 3) > 0; }) {}

  cpu::Lookups lookups() {
    return {ids.data(),
            partner_ids.data(),
            lam.data(),
            masked ? mask.data() : nullptr,
            partner_masked ? partner_mask.data() : nullptr,
            length};
  }
  double weight(int64_t n) { return !masked || mask[n] ? lam[n / length] : 0.0; }
  double partner_weight(int64_t n) { return !partner_masked || partner_mask[n] ? 1.0 - lam[n / length] : 0.0; }
};

// A table [rows, columns] of small numbers with a row stride.
std::unique_ptr<Numbers> random_table(Format format, int64_t rows, int64_t columns, int64_t stride) {
  auto table = std::make_unique<Numbers>(format, (rows - 1) * stride + columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) table->set(r * stride + c, rng.between(-2.0f, 2.0f));
  }
  return table;
}

double mixed_words(Tokens* t, Numbers* table, int64_t stride, int64_t n, int64_t c) {
  return t->weight(n) * table->get(t->ids[n] * stride + c) +
         t->partner_weight(n) * table->get(t->partner_ids[n] * stride + c);
}

// sum_rows in two column ranges, compared with a table that is summed token by token.
void sums_case(Tokens* t, int64_t columns) {
  const auto grad = random_table(kFormats[rng.in(0, 3)], std::max<int64_t>(1, t->count), columns, columns);
  const int64_t padding = rng.in(-1, t->rows - 1);
  cpu::Buckets buckets = cpu::sort_lookups(t->lookups(), t->count, t->rows, padding);
  std::vector<double> expected(t->rows * columns, 0.0);
  std::vector<bool> touched(t->rows, false);
  const auto add = [&](int64_t row, int64_t n, double weight) {
    if (weight == 0 || row == padding) return;
    touched[row] = true;
    for (int64_t c = 0; c < columns; ++c) expected[row * columns + c] += weight * grad->get(n * columns + c);
  };
  for (int64_t n = 0; n < t->count; ++n) add(t->ids[n], n, t->weight(n));
  for (int64_t n = 0; n < t->count; ++n) add(t->partner_ids[n], n, t->partner_weight(n));
  std::vector<int64_t> rows(t->rows);
  std::iota(rows.begin(), rows.end(), 0);
  if (rng.one_in(2)) {
    rows = cpu::drop_empty(&buckets);
    expect(static_cast<int64_t>(rows.size()) == std::count(touched.begin(), touched.end(), true), "drop_empty");
  }
  const int64_t count = static_cast<int64_t>(rows.size()), cut = std::min(columns, rng.in(0, 4) * 64);
  expect(buckets.rows() == count, "buckets");
  Numbers out(kFormats[rng.in(0, 3)], count * columns);
  for (const auto& range : {std::make_pair(int64_t{0}, cut), std::make_pair(cut, columns)}) {
    const cpu::SumRows m = {grad->data(),
                            columns,
                            grad->format,
                            buckets.offsets.data(),
                            buckets.entries.data(),
                            out.data(),
                            out.format,
                            rng.one_in(2),
                            range.first,
                            range.second};
    int64_t done = 0;
    for (int64_t part = 0, parts = rng.in(1, 5); part < parts; ++part) {
      expect(buckets.cut(part, parts) == done, "cut: the parts have a gap");
      done = buckets.cut(part + 1, parts);
      cpu::sum_rows(m, buckets.cut(part, parts), done);
    }
    expect(done == count, "cut: rows are missing");
  }
  for (int64_t k = 0; k < count; ++k) {
    expect(count == t->rows || touched[rows[k]], "drop_empty keeps an empty row");
    for (int64_t c = 0; c < columns; ++c) {
      expect(out.near(k * columns + c, expected[rows[k] * columns + c], 1e-4), "sum_rows differs");
    }
  }
}

void bert_case(Tokens* t, Numbers* table, int64_t stride, int64_t columns) {
  const Format format = table->format;
  const bool wide = format == Format::f64, typed = rng.one_in(2), type_ids = typed && rng.one_in(2);
  const int64_t positions = rng.in(1, 9), types = rng.in(1, 3);
  const auto position = random_table(format, positions, columns, columns);
  const auto type = random_table(format, types, columns, columns);
  const auto scale = random_table(format, 1, columns, columns), shift = random_table(format, 1, columns, columns);
  Array<int64_t> position_ids(t->count, [&](int64_t) { return rng.in(0, positions - 1); });
  Array<int64_t> token_types(t->count, [&](int64_t) { return rng.in(0, types - 1); });
  Numbers out(kFormats[rng.in(0, 3)], t->count * columns);
  Numbers mean(wide ? Format::f64 : Format::f32, t->count), rstd(mean.format, t->count);
  const double eps = 1e-2;
  const cpu::BertEmbeddings m = {table->data(),
                                 stride,
                                 columns,
                                 position->data(),
                                 typed ? type->data() : nullptr,
                                 scale->data(),
                                 shift->data(),
                                 format,
                                 t->lookups(),
                                 position_ids.data(),
                                 type_ids ? token_types.data() : nullptr,
                                 eps,
                                 out.data(),
                                 out.format,
                                 rng.one_in(2),
                                 mean.data(),
                                 rstd.data()};
  in_ranges(cpu::bert_embeddings, m, t->count);
  const auto grad = random_table(kFormats[rng.in(0, 3)], std::max<int64_t>(1, t->count), columns, columns);
  cpu::BertBackward b = {m, t->count, rng.in(1, 7), grad->data(), grad->format, nullptr, nullptr};
  const int64_t chunks = (t->count + b.chunk - 1) / b.chunk;
  Numbers grad_mixed(mean.format, t->count * columns), partial(mean.format, chunks * 2 * columns);
  b.grad_mixed = grad_mixed.data();
  b.partial = partial.data();
  in_ranges(cpu::bert_backward, b, chunks);
  std::vector<double> sums(partial.bytes.size() / static_cast<size_t>(width_of(partial.format)), 0.0);
  std::vector<double> x(columns);
  for (int64_t n = 0; n < t->count; ++n) {
    double mean_value = 0, variance = 0, u_mean = 0, uh_mean = 0;
    const double size = static_cast<double>(columns);
    for (int64_t c = 0; c < columns; ++c) {
      x[c] = mixed_words(t, table, stride, n, c) + position->get(position_ids[n] * columns + c);
      if (typed) x[c] += type->get((type_ids ? token_types[n] : 0) * columns + c);
      mean_value += x[c] / size;
    }
    for (const double v : x) variance += (v - mean_value) * (v - mean_value) / size;
    const double rstd_value = 1 / std::sqrt(variance + eps);
    expect(mean.near(n, mean_value, 1e-5) && rstd.near(n, rstd_value, 1e-4), "bert_embeddings: moments");
    for (int64_t c = 0; c < columns; ++c) {
      x[c] = (x[c] - mean_value) * rstd_value;
      const double g = grad->get(n * columns + c);
      expect(out.near(n * columns + c, x[c] * scale->get(c) + shift->get(c), 1e-4), "bert_embeddings differs");
      u_mean += g * scale->get(c) / size;
      uh_mean += g * scale->get(c) * x[c] / size;
      sums[(n / b.chunk * 2) * columns + c] += g * x[c];
      sums[(n / b.chunk * 2 + 1) * columns + c] += g;
    }
    for (int64_t c = 0; c < columns; ++c) {
      const double u = grad->get(n * columns + c) * scale->get(c);
      expect(grad_mixed.near(n * columns + c, rstd_value * (u - u_mean - x[c] * uh_mean), 2e-3),
             "bert_backward differs");
    }
  }
  for (size_t k = 0; k < sums.size(); ++k) {
    expect(partial.near(static_cast<int64_t>(k), sums[k], 1e-3), "bert_backward: sums differ");
  }
}

void embeddings_case() {
  const int64_t columns = rng.one_in(3) ? rng.in(1, 4) * 16 : rng.in(1, 90), stride = columns + rng.in(0, 1) * 7;
  Tokens t(rng.in(1, 12), rng.in(0, 4), rng.in(1, 9));
  const auto table = random_table(kFormats[rng.in(0, 3)], t.rows, columns, stride);
  Numbers out(kFormats[rng.in(0, 3)], t.count * columns);
  const cpu::MixEmbeddings m = {table->data(), stride,     columns,    table->format,
                                t.lookups(),   out.data(), out.format, rng.one_in(2)};
  in_ranges(cpu::mix_embeddings, m, t.count);
  for (int64_t n = 0; n < t.count; ++n) {
    for (int64_t c = 0; c < columns; ++c) {
      expect(out.near(n * columns + c, mixed_words(&t, table.get(), stride, n, c), 2e-6), "mix_embeddings differs");
    }
  }
  sums_case(&t, columns);
  bert_case(&t, table.get(), stride, columns);
}
