"""Image batches in Triton: one launch draws, crops, flips, normalises, mixes and labels."""

from __future__ import annotations

from spurmix.kernels.draw import draw_samples, sample_words, tables_are_valid

import triton
import triton.language as tl


@triton.jit
def _q16(v):
    """A coordinate in units of 2^-16 pixel, rounded half to even, within +-2^20 pixels; NaN is 0."""
    limit = 1048576.0
    v = tl.where(v != v, 0.0, tl.minimum(tl.maximum(v, -limit), limit)).to(tl.float64) * 65536.0
    near = tl.floor(v + 0.5)
    whole = near.to(tl.int64)
    return tl.where((near - v == 0.5) & ((whole & 1) == 1), whole - 1, whole)


@triton.jit
def _axis_taps(start, extent, size, out, k):
    """Bilinear taps of positions `k` of `out` over [start, start + extent) (Q16) of an axis of `size` pixels.

    floor((2 k + 1) extent / (2 out)), with one 64-bit division for the axis and 32-bit ones for the positions: `out` is
    at most 32767.
    """
    divisor = (2 * out).to(tl.int64)
    whole = extent // divisor
    whole = tl.where(whole * divisor > extent, whole - 1, whole)  # division truncates
    rest = (extent - whole * divisor).to(tl.uint32)
    odd = (2 * k + 1).to(tl.uint32)
    step = odd.to(tl.int64) * whole + (odd * rest // divisor.to(tl.uint32)).to(tl.int64)
    p = start + step - 32768
    p = tl.minimum(tl.maximum(p, 0), (size - 1).to(tl.int64) << 16)
    i0 = (p >> 16).to(tl.int32)
    return i0, tl.minimum(i0 + 1, size - 1), (p & 65535).to(tl.float32) * 0.0000152587890625


@triton.jit
def _crop_box(seed, n, block: tl.constexpr, height, width, scale_min, scale_max, log_min, log_max):
    """The random resized crop of samples `n`: top, left, height, width in pixels."""
    w0, w1, w2, w3 = sample_words(seed, n, block)
    unit = 2.3283064365386963e-10
    rows, columns = height.to(tl.float32), width.to(tl.float32)
    area = (height * width).to(tl.float32) * (scale_min + (scale_max - scale_min) * (w0.to(tl.float32) * unit))
    ratio = tl.exp(log_min + (log_max - log_min) * (w1.to(tl.float32) * unit))
    w = tl.minimum(columns, tl.sqrt(area * ratio))
    h = tl.minimum(rows, tl.sqrt(area / ratio))
    return w2.to(tl.float32) * unit * (rows - h), w3.to(tl.float32) * unit * (columns - w), h, w


@triton.jit
def _sample(image, y0, y1, fy, x0, x1, fx, width, channels, channel, mask):
    """Bilinear values of one channel."""
    upper, lower = image + y0 * width * channels + channel, image + y1 * width * channels + channel
    p = tl.load(upper + x0 * channels, mask=mask, other=0).to(tl.float32)
    q = tl.load(upper + x1 * channels, mask=mask, other=0).to(tl.float32)
    r = tl.load(lower + x0 * channels, mask=mask, other=0).to(tl.float32)
    s = tl.load(lower + x1 * channels, mask=mask, other=0).to(tl.float32)
    top = p + fx * (q - p)
    return top + fy * (r + fx * (s - r) - top)


@triton.jit
def _mix_pixels(
    images, image_stride, own, other, lam, known, boxes, flip_a, flip_b, mean, std, out, sample, height, width,
    out_height, out_width, CROP: tl.constexpr, LAST: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK pixels of one sample. `boxes`: eight Q16 numbers, those of the own and of the other image."""
    pixels = out_height * out_width
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pixels
    mask = inside & known
    a, b = images + own * image_stride, images + other * image_stride
    y = p // out_width
    x = p - y * out_width
    xa, xb = tl.where(flip_a, out_width - 1 - x, x), tl.where(flip_b, out_width - 1 - x, x)
    if CROP:
        ay0, ay1, afy = _axis_taps(boxes[0], boxes[2], height, out_height, y)
        ax0, ax1, afx = _axis_taps(boxes[1], boxes[3], width, out_width, xa)
        by0, by1, bfy = _axis_taps(boxes[4], boxes[6], height, out_height, y)
        bx0, bx1, bfx = _axis_taps(boxes[5], boxes[7], width, out_width, xb)
    for c in tl.static_range(CHANNELS):
        if CROP:
            va = _sample(a, ay0, ay1, afy, ax0, ax1, afx, width, CHANNELS, c, mask)
            vb = _sample(b, by0, by1, bfy, bx0, bx1, bfx, width, CHANNELS, c, mask)
        else:
            va = tl.load(a + (y * width + xa) * CHANNELS + c, mask=mask, other=0).to(tl.float32)
            vb = tl.load(b + (y * width + xb) * CHANNELS + c, mask=mask, other=0).to(tl.float32)
        deviation = tl.load(std + c)
        scale, bias = 1.0 / (255.0 * deviation), -tl.load(mean + c) / deviation
        value = (lam * scale) * va + (((1 - lam) * scale) * vb + bias)
        value = tl.where(known, value, float("nan")).to(out.dtype.element_ty)
        if LAST:
            tl.store(out + (sample * pixels + p) * CHANNELS + c, value, mask=inside)
        else:
            tl.store(out + (sample * CHANNELS + c) * pixels + p, value, mask=inside)


@triton.jit
def mix_images_kernel(
    images, image_stride, total, index, partner, lam, mean, std, boxes, flips, out, flag, height, width, out_height,
    out_width, CROP: tl.constexpr, FLIP: tl.constexpr, LAST: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    own, other = tl.load(index + sample), tl.load(partner + sample)
    known = (own >= 0) & (own < total) & (other >= 0) & (other < total)
    if not known:
        tl.store(flag, 1)
    zero = sample * 0
    q = (zero, zero, zero, zero, zero, zero, zero, zero)
    if CROP:
        at = boxes + 8 * sample
        q = (
            _q16(tl.load(at)), _q16(tl.load(at + 1)), _q16(tl.load(at + 2)), _q16(tl.load(at + 3)),
            _q16(tl.load(at + 4)), _q16(tl.load(at + 5)), _q16(tl.load(at + 6)), _q16(tl.load(at + 7)),
        )  # fmt: skip
    flip_a, flip_b = zero != 0, zero != 0
    if FLIP:
        flip_a, flip_b = tl.load(flips + 2 * sample) != 0, tl.load(flips + 2 * sample + 1) != 0
    _mix_pixels(
        images, image_stride, own, other, tl.load(lam + sample), known, q, flip_a, flip_b, mean, std, out, sample,
        height, width, out_height, out_width, CROP, LAST, CHANNELS, BLOCK,
    )  # fmt: skip


@triton.jit
def _whole(x):
    """The one element of a block of one."""
    return tl.sum(x, 0)


@triton.jit
def mix_image_batch_kernel(
    images, image_stride, labels, tables, length, members, mean, std, scale_min, scale_max, log_min, log_max, seed,
    start, counter, out, label, partner_label, lam, index, partner, group, flag, height, width, out_height, out_width,
    HAS_MEMBERS: tl.constexpr, HAS_COUNTER: tl.constexpr, KEEP_LABELS: tl.constexpr, CROP: tl.constexpr,
    FLIP: tl.constexpr, LAST: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draws its sample and mixes BLOCK of its pixels; the first program of a sample writes its seven small outputs."""
    sample = tl.program_id(0).to(tl.int64)
    n = start + sample + tl.arange(0, 1)
    if HAS_COUNTER:
        n += tl.load(counter)
    known = tables_are_valid(tables, length)
    own, other, of, weight = sample * 0, sample * 0, sample * 0 - 1, (sample * 0).to(tl.float32)
    bits = (sample * 0).to(tl.uint32)
    if known:
        drawn, mate, groups, lams, words = draw_samples(tables, members, seed, n, n >= 0, HAS_MEMBERS)
        own, other, of, weight = _whole(drawn), _whole(mate), _whole(groups), _whole(lams)
        bits = _whole(words)
    else:
        tl.store(flag, 1)
    if tl.program_id(1) == 0:
        own_label = tl.load(labels + own, mask=known, other=0).to(tl.int64)
        other_label = own_label
        if (tl.load(tables + 7) & KEEP_LABELS) == 0:
            other_label = tl.load(labels + other, mask=known, other=0).to(tl.int64)
        tl.store(label + sample, own_label)
        tl.store(partner_label + sample, other_label)
        tl.store(lam + sample, tl.where(known, weight, float("nan")))
        tl.store(index + sample, own)
        tl.store(partner + sample, other)
        tl.store(group + sample, of)
    zero = sample * 0
    q = (zero, zero, zero, zero, zero, zero, zero, zero)
    if CROP:
        at, al, ah, aw = _crop_box(seed, n, 2, height, width, scale_min, scale_max, log_min, log_max)
        bt, bl, bh, bw = _crop_box(seed, n, 3, height, width, scale_min, scale_max, log_min, log_max)
        q = (
            _whole(_q16(at)), _whole(_q16(al)), _whole(_q16(ah)), _whole(_q16(aw)),
            _whole(_q16(bt)), _whole(_q16(bl)), _whole(_q16(bh)), _whole(_q16(bw)),
        )  # fmt: skip
    flip_a, flip_b = zero != 0, zero != 0
    if FLIP:
        flip_a, flip_b = (bits & 1) != 0, (bits & 2) != 0
    _mix_pixels(
        images, image_stride, own, other, weight, known, q, flip_a, flip_b, mean, std, out, sample, height, width,
        out_height, out_width, CROP, LAST, CHANNELS, BLOCK,
    )  # fmt: skip
