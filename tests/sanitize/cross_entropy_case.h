// The cross entropy kernels, and argmax. Included by driver.cpp.

// Random logits, labels and weights, with the results of the forward pass.
struct CrossEntropyData {
  int64_t classes, row_stride, batch;
  Format format, result;
  bool extreme;  // some logits are infinite or NaN
  double smoothing;
  Numbers logits, loss, logsumexp;
  Array<int64_t> label, partner;
  Array<float> lam;

  CrossEntropyData(int64_t classes, int64_t row_stride, int64_t batch, Format format)
      : classes(classes),
        row_stride(row_stride),
        batch(batch),
        format(format),
        result(format == Format::f64 ? Format::f64 : Format::f32),
        extreme(rng.one_in(4)),
        smoothing(rng.one_in(2) ? 0.0 : static_cast<double>(rng.unit())),
        logits(format, batch > 0 ? (batch - 1) * row_stride + classes : 0),
        loss(result, batch),
        logsumexp(result, batch),
        label(batch, [&](int64_t) { return rng.in(0, classes - 1); }),
        partner(batch, [&](int64_t i) { return rng.one_in(3) ? label[i] : rng.in(0, classes - 1); }),
        lam(batch, [](int64_t) { return random_lam(); }) {
    const double infinity = std::numeric_limits<double>::infinity();
    const double special[] = {infinity, -infinity, NAN, 6e4, -6e4, 0.0, 3e38, -3e38};
    const int64_t entries = batch > 0 ? (batch - 1) * row_stride + classes : 0;
    for (int64_t i = 0; i < entries; ++i) {
      logits.set(i, extreme && rng.one_in(3) ? special[rng.in(0, 7)] : rng.between(-9.0f, 9.0f));
    }
  }

  double logit(int64_t n, int64_t c) { return logits.get(n * row_stride + c); }
  cpu::CrossEntropy forward() {
    cpu::CrossEntropy m = {};
    m.logits = logits.data();
    m.row_stride = row_stride;
    m.classes = classes;
    m.format = format;
    m.label = label.data();
    m.partner_label = partner.data();
    m.lam = lam.data();
    m.label_smoothing = smoothing;
    m.loss = loss.data();
    m.logsumexp = logsumexp.data();
    return m;
  }
  // The values of the formula for example n.
  double expected_logsumexp(int64_t n) {
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(logit(n, c));
    return std::log(sum);
  }
  double target(int64_t n, int64_t c) {
    return (1 - smoothing) * (lam[n] * (c == label[n]) + (1.0 - lam[n]) * (c == partner[n])) +
           smoothing / static_cast<double>(classes);
  }
  double expected_loss(int64_t n) {
    const double lse = expected_logsumexp(n);
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += target(n, c) * (lse - logit(n, c));
    return sum;
  }
  double expected_gradient(int64_t n, int64_t c, double lse) { return std::exp(logit(n, c) - lse) - target(n, c); }
};

// The forward pass.
void loss_case(CrossEntropyData* d) {
  in_ranges(cpu::cross_entropy, d->forward(), d->batch);
  for (int64_t n = 0; n < d->batch && !d->extreme; ++n) {
    expect(d->loss.near(n, d->expected_loss(n), 2e-4), "cross_entropy: the loss differs");
    expect(d->logsumexp.near(n, d->expected_logsumexp(n), 1e-4), "cross_entropy: logsumexp differs");
  }
}

// The backward pass, after `loss_case`.
void loss_backward_case(CrossEntropyData* d) {
  const int64_t batch = d->batch, classes = d->classes, stride = rng.in(0, 2);
  const cpu::CrossEntropy m = d->forward();
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
  b.grad_stride = stride;
  b.factor = static_cast<double>(rng.unit());
  const int64_t grads = batch > 0 ? (batch - 1) * stride + 1 : 0;
  Numbers grad(d->result, grads), grad_logits(d->format, batch * classes);
  for (int64_t i = 0; i < grads; ++i) grad.set(i, rng.between(-2.0f, 2.0f));
  b.grad = grad.data();
  b.grad_logits = grad_logits.data();
  in_ranges(cpu::cross_entropy_backward, b, batch);
  for (int64_t n = 0; n < batch && !d->extreme; ++n) {
    const double factor = b.factor * grad.get(n * stride), lse = d->expected_logsumexp(n);
    for (int64_t c = 0; c < classes; ++c) {
      expect(grad_logits.near(n * classes + c, factor * d->expected_gradient(n, c, lse), 2e-4), "backward differs");
    }
  }
}

// The forward pass that also returns the gradient.
void loss_with_grad_case(CrossEntropyData* d) {
  if (d->format != Format::f32 && d->format != Format::f64) return;
  const int64_t batch = d->batch, classes = d->classes;
  Numbers loss(d->result, batch), gradient(d->format, batch * classes);
  cpu::CrossEntropyWithGrad g = {d->forward(), static_cast<double>(rng.unit()), gradient.data()};
  g.forward.loss = loss.data();
  g.forward.logsumexp = nullptr;
  in_ranges(cpu::cross_entropy_with_grad, g, batch);
  for (int64_t n = 0; n < batch && !d->extreme; ++n) {
    expect(loss.near(n, d->expected_loss(n), 2e-4), "cross_entropy_with_grad: the loss differs");
    const double lse = d->expected_logsumexp(n);
    for (int64_t c = 0; c < classes; ++c) {
      const double expected = g.factor * d->expected_gradient(n, c, lse);
      expect(gradient.near(n * classes + c, expected, 2e-4), "cross_entropy_with_grad: the gradient differs");
    }
  }
}

// argmax returns the first maximum, and NaN is larger than all numbers.
void argmax_case(CrossEntropyData* d) {
  Array<int64_t> best(d->batch);
  const cpu::Argmax a = {d->logits.data(), d->row_stride, d->classes, d->format, best.data()};
  in_ranges(cpu::argmax, a, d->batch);
  for (int64_t n = 0; n < d->batch; ++n) {
    int64_t expected = 0;
    for (int64_t c = 1; c < d->classes; ++c) {
      const double top = d->logit(n, expected), v = d->logit(n, c);
      if (!std::isnan(top) && (std::isnan(v) || v > top)) expected = c;
    }
    expect(best[n] == expected, "argmax differs");
  }
}

// Results for ordinary logits are compared with a formula. Extreme logits must only not cause invalid accesses.
void cross_entropy_case() {
  const int64_t classes = rng.one_in(6) ? rng.in(100, 1100) : rng.in(1, rng.one_in(2) ? 5 : 70);
  const int64_t row_stride = classes + (rng.one_in(3) ? rng.in(1, 9) : 0);
  CrossEntropyData data(classes, row_stride, rng.in(0, rng.one_in(3) ? 70 : 6), kFormats[rng.in(0, 3)]);
  loss_case(&data);
  loss_backward_case(&data);
  loss_with_grad_case(&data);
  argmax_case(&data);
}
