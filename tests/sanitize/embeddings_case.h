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

// BERT's embedding block on random tables.
struct BertData {
  Tokens* tokens;
  Numbers* words;
  int64_t stride, columns, positions, types;
  bool typed, type_ids;
  std::unique_ptr<Numbers> position, type, scale, shift;
  Array<int64_t> position_ids, token_types;
  Numbers out, mean, rstd;
  double eps = 1e-2;

  BertData(Tokens* t, Numbers* table, int64_t stride, int64_t columns)
      : tokens(t),
        words(table),
        stride(stride),
        columns(columns),
        positions(rng.in(1, 9)),
        types(rng.in(1, 3)),
        typed(rng.one_in(2)),
        type_ids(typed && rng.one_in(2)),
        position(random_table(table->format, positions, columns, columns)),
        type(random_table(table->format, types, columns, columns)),
        scale(random_table(table->format, 1, columns, columns)),
        shift(random_table(table->format, 1, columns, columns)),
        position_ids(t->count, [&](int64_t) { return rng.in(0, positions - 1); }),
        token_types(t->count, [&](int64_t) { return rng.in(0, types - 1); }),
        out(kFormats[rng.in(0, 3)], t->count * columns),
        mean(table->format == Format::f64 ? Format::f64 : Format::f32, t->count),
        rstd(mean.format, t->count) {}

  cpu::BertEmbeddings forward() {
    return {words->data(),
            stride,
            columns,
            position->data(),
            typed ? type->data() : nullptr,
            scale->data(),
            shift->data(),
            words->format,
            tokens->lookups(),
            position_ids.data(),
            type_ids ? token_types.data() : nullptr,
            eps,
            out.data(),
            out.format,
            rng.one_in(2),
            mean.data(),
            rstd.data()};
  }
};

// One token before the scale and shift, in double precision.
struct NormalizedToken {
  double mean = 0, rstd = 0;
  std::vector<double> values;

  NormalizedToken(BertData* d, int64_t n) : values(d->columns) {
    const double size = static_cast<double>(d->columns);
    for (int64_t c = 0; c < d->columns; ++c) {
      double& x = values[c];
      x = mixed_words(d->tokens, d->words, d->stride, n, c) + d->position->get(d->position_ids[n] * d->columns + c);
      if (d->typed) x += d->type->get((d->type_ids ? d->token_types[n] : 0) * d->columns + c);
      mean += x / size;
    }
    double variance = 0;
    for (const double v : values) variance += (v - mean) * (v - mean) / size;
    rstd = 1 / std::sqrt(variance + d->eps);
    for (double& v : values) v = (v - mean) * rstd;
  }
};

void bert_forward_case(BertData* d, const std::vector<NormalizedToken>& expected) {
  in_ranges(cpu::bert_embeddings, d->forward(), d->tokens->count);
  for (int64_t n = 0; n < d->tokens->count; ++n) {
    const NormalizedToken& token = expected[n];
    expect(d->mean.near(n, token.mean, 1e-5) && d->rstd.near(n, token.rstd, 1e-4), "bert_embeddings: moments");
    for (int64_t c = 0; c < d->columns; ++c) {
      const double value = token.values[c] * d->scale->get(c) + d->shift->get(c);
      expect(d->out.near(n * d->columns + c, value, 1e-4), "bert_embeddings differs");
    }
  }
}

// The gradients of the normalization, and the sums over tokens for those of scale and shift. After `bert_forward_case`.
void bert_backward_case(BertData* d, const std::vector<NormalizedToken>& expected) {
  const int64_t count = d->tokens->count, columns = d->columns;
  const auto grad = random_table(kFormats[rng.in(0, 3)], std::max<int64_t>(1, count), columns, columns);
  cpu::BertBackward b = {d->forward(), count, rng.in(1, 7), grad->data(), grad->format, nullptr, nullptr};
  const int64_t chunks = (count + b.chunk - 1) / b.chunk;
  Numbers grad_mixed(d->mean.format, count * columns), partial(d->mean.format, chunks * 2 * columns);
  b.grad_mixed = grad_mixed.data();
  b.partial = partial.data();
  in_ranges(cpu::bert_backward, b, chunks);
  std::vector<double> sums(chunks * 2 * columns, 0.0);
  for (int64_t n = 0; n < count; ++n) {
    const NormalizedToken& token = expected[n];
    const double size = static_cast<double>(columns);
    double u_mean = 0, uh_mean = 0;
    for (int64_t c = 0; c < columns; ++c) {
      const double g = grad->get(n * columns + c), u = g * d->scale->get(c);
      u_mean += u / size;
      uh_mean += u * token.values[c] / size;
      sums[(n / b.chunk * 2) * columns + c] += g * token.values[c];
      sums[(n / b.chunk * 2 + 1) * columns + c] += g;
    }
    for (int64_t c = 0; c < columns; ++c) {
      const double u = grad->get(n * columns + c) * d->scale->get(c);
      expect(grad_mixed.near(n * columns + c, token.rstd * (u - u_mean - token.values[c] * uh_mean), 2e-3),
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
  BertData bert(&t, table.get(), stride, columns);
  std::vector<NormalizedToken> normalized;
  for (int64_t n = 0; n < t.count; ++n) normalized.emplace_back(&bert, n);
  bert_forward_case(&bert, normalized);
  bert_backward_case(&bert, normalized);
}
