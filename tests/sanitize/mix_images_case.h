// mix_images. Included by driver.cpp.

Box random_box(int64_t h, int64_t w) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float extreme[] = {NAN, infinity, -infinity, 1e30f, -1e30f, 0.0f, -0.0f, -3.5f, 1048576.0f, 1e-40f};
  const float hf = static_cast<float>(h), wf = static_cast<float>(w);
  if (rng.one_in(4)) {
    float v[4];
    for (float& x : v) x = rng.one_in(3) ? rng.between(-2.0f * hf, 2.0f * wf) : extreme[rng.in(0, 9)];
    return {v[0], v[1], v[2], v[3]};
  }
  const float height = rng.between(0.0f, hf), width = rng.between(0.0f, wf);
  return {rng.between(0.0f, hf - height), rng.between(0.0f, wf - width), height, width};
}

double interpolated(const uint8_t* image, const cpu::MixImages& m, const Box& box, bool flip, int64_t y, int64_t x,
                    int64_t c) {
  const Tap v = axis_tap(q16(box.top), q16(box.height), m.height, m.out_height, y);
  const Tap u = axis_tap(q16(box.left), q16(box.width), m.width, m.out_width, flip ? m.out_width - 1 - x : x);
  const auto pixel = [&](int64_t row, int64_t column) -> double {
    return image[(row * m.width + column) * m.channels + c];
  };
  const double upper = pixel(v.i0, u.i0) + static_cast<double>(u.f) * (pixel(v.i0, u.i1) - pixel(v.i0, u.i0));
  const double lower = pixel(v.i1, u.i0) + static_cast<double>(u.f) * (pixel(v.i1, u.i1) - pixel(v.i1, u.i0));
  return upper + static_cast<double>(v.f) * (lower - upper);
}

void mix_images_case() {
  const bool tiny = rng.one_in(3);
  cpu::MixImages m = {};
  m.height = rng.in(1, tiny ? 5 : 70);
  m.width = rng.in(1, tiny ? 5 : 70);
  m.channels = rng.in(1, 6);
  const int64_t total = rng.in(1, 5), batch = rng.in(0, 5), size = m.height * m.width * m.channels;
  m.image_stride = size + (rng.one_in(3) ? rng.in(1, 100) : 0);
  Array<uint8_t> images((total - 1) * m.image_stride + size, [](int64_t) { return rng.bits(); });
  Array<int64_t> index(batch, [&](int64_t) { return rng.in(0, total - 1); });
  Array<int64_t> partner(batch, [&](int64_t) { return rng.in(0, total - 1); });
  Array<float> lam(batch, [](int64_t) { return random_lam(); });
  Array<float> mean(m.channels, [](int64_t) { return rng.unit(); });
  Array<float> std(m.channels, [](int64_t) { return rng.between(0.2f, 1.0f); });
  const bool crop = rng.one_in(2), flip = rng.one_in(2);
  Array<Box> boxes(crop ? 2 * batch : 0);
  for (int64_t i = 0; i < boxes.size(); ++i) boxes[i] = random_box(m.height, m.width);
  Array<uint8_t> flips(flip ? 2 * batch : 0, [](int64_t) { return rng.in(0, 2) / 2; });
  m.out_height = crop ? rng.in(1, 70) : m.height;
  m.out_width = crop ? rng.in(1, 70) : m.width;
  m.images = images.data();
  m.index = index.data();
  m.partner = partner.data();
  m.lam = lam.data();
  m.mean = mean.data();
  m.std = std.data();
  m.boxes = crop ? boxes.data() : nullptr;
  m.flips = flip ? flips.data() : nullptr;
  m.format = kFormats[rng.in(0, 2)];
  m.channels_last = rng.one_in(2);
  m.parts = rng.in(1, 4);
  m.stream = rng.one_in(2);
  const int64_t values = m.channels * m.out_height * m.out_width;
  Numbers out(m.format, batch * values);
  m.out = out.data();
  in_ranges(cpu::mix_images, m, batch * m.parts);

  const Box whole = {0.0f, 0.0f, static_cast<float>(m.height), static_cast<float>(m.width)};
  for (int64_t n = 0; n < batch; ++n) {
    const uint8_t *a = m.images + index[n] * m.image_stride, *b = m.images + partner[n] * m.image_stride;
    for (int64_t c = 0; c < m.channels; ++c) {
      for (int64_t y = 0; y < m.out_height; ++y) {
        for (int64_t x = 0; x < m.out_width; ++x) {
          const double va = interpolated(a, m, crop ? boxes[2 * n] : whole, flip && flips[2 * n], y, x, c);
          const double vb = interpolated(b, m, crop ? boxes[2 * n + 1] : whole, flip && flips[2 * n + 1], y, x, c);
          const double w = lam[n], mixed = (w * va + (1 - w) * vb) / 255;
          const int64_t at =
              m.channels_last ? (y * m.out_width + x) * m.channels + c : (c * m.out_height + y) * m.out_width + x;
          if (!out.near(n * values + at, (mixed - mean[c]) / std[c], 1e-5)) {
            fail("mix_images: sample " + std::to_string(n) + ", value " + std::to_string(at) + " is " +
                 std::to_string(out.get(n * values + at)) + ", expected " + std::to_string((mixed - mean[c]) / std[c]));
          }
        }
      }
    }
  }
}
