// The cross entropy kernels, and argmax. Included by driver.cpp.

void cross_entropy_case() {
  cpu::CrossEntropy m = {};
  m.classes = rng.one_in(6) ? rng.in(100, 1100) : rng.in(1, rng.one_in(2) ? 5 : 70);
  m.format = kFormats[rng.in(0, 3)];
  m.row_stride = m.classes + (rng.one_in(3) ? rng.in(1, 9) : 0);
  const int64_t batch = rng.in(0, rng.one_in(3) ? 70 : 6),
                entries = std::max<int64_t>(0, (batch - 1) * m.row_stride + m.classes);
  // The results for ordinary logits are compared with a formula. Extreme logits must only not cause invalid accesses.
  const bool extreme = rng.one_in(4), wide = m.format == Format::f64;
  const double infinity = std::numeric_limits<double>::infinity();
  const double special[] = {infinity, -infinity, NAN, 6e4, -6e4, 0.0, 3e38, -3e38};
  Numbers logits(m.format, batch > 0 ? entries : 0);
  for (int64_t i = 0; i < (batch > 0 ? entries : 0); ++i) {
    logits.set(i, extreme && rng.one_in(3) ? special[rng.in(0, 7)] : rng.between(-9.0f, 9.0f));
  }
  Array<int64_t> label(batch, [&](int64_t) { return rng.in(0, m.classes - 1); });
  Array<int64_t> partner(batch, [&](int64_t i) { return rng.one_in(3) ? label[i] : rng.in(0, m.classes - 1); });
  Array<float> lam(batch, [](int64_t) { return random_lam(); });
  const Format result = wide ? Format::f64 : Format::f32;
  Numbers loss(result, batch), logsumexp(result, batch), direct_loss(result, batch);
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

  const bool has_with_grad = m.format == Format::f32 || wide;
  Numbers direct_grad(m.format, has_with_grad ? batch * m.classes : 0);
  if (has_with_grad) {
    cpu::CrossEntropyWithGrad g = {m, b.factor, direct_grad.data()};
    g.forward.loss = direct_loss.data();
    g.forward.logsumexp = nullptr;
    in_ranges(cpu::cross_entropy_with_grad, g, batch);
  }

  Array<int64_t> best(batch);
  const cpu::Argmax a = {m.logits, m.row_stride, m.classes, m.format, best.data()};
  in_ranges(cpu::argmax, a, batch);
  for (int64_t n = 0; n < batch; ++n) {
    const auto logit = [&](int64_t c) { return logits.get(n * m.row_stride + c); };
    int64_t expected = 0;
    for (int64_t c = 1; c < m.classes; ++c) {
      const double top = logit(expected), v = logit(c);
      if (!std::isnan(top) && (std::isnan(v) || v > top)) expected = c;
    }
    expect(best[n] == expected, "argmax differs");
    if (extreme) continue;
    double sum = 0, smooth = 0;
    for (int64_t c = 0; c < m.classes; ++c) sum += std::exp(logit(c));
    const double lse = std::log(sum), w = lam[n], s = m.label_smoothing, share = s / static_cast<double>(m.classes);
    for (int64_t c = 0; c < m.classes; ++c) smooth += share * (lse - logit(c));
    const double value = (1 - s) * (w * (lse - logit(label[n])) + (1 - w) * (lse - logit(partner[n]))) + smooth;
    expect(loss.near(n, value, 2e-4) && logsumexp.near(n, lse, 1e-4), "cross_entropy differs");
    expect(!has_with_grad || direct_loss.near(n, value, 2e-4), "cross_entropy_with_grad: the loss differs");
    for (int64_t c = 0; c < m.classes; ++c) {
      const double target = (1 - s) * (w * (c == label[n]) + (1 - w) * (c == partner[n])) + share;
      const double gradient = (std::exp(logit(c) - lse) - target) * b.factor;
      expect(grad_logits.near(n * m.classes + c, gradient * grad.get(n * b.grad_stride), 2e-4), "backward differs");
      expect(!has_with_grad || direct_grad.near(n * m.classes + c, gradient, 2e-4), "cross_entropy_with_grad differs");
    }
  }
}
