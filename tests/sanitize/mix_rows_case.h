// mix_rows and mix_labels. Included by driver.cpp.

void mix_rows_case() {
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

void mix_labels_case() {
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
