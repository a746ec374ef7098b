"""Image batches in Triton: one launch draws, crops, flips, normalises, mixes and labels.

Without a crop, an output of the images' own layout is a flat pass over bytes: wide loads and stores. Otherwise a program
takes rows of the output in tiles whose columns are elements (channels last) or pixels (planes, channel by channel), so
that taps are worked out once per row and per column.
"""

from __future__ import annotations

import triton
import triton.language as tl
from spurmix.kernels.draw import WORD_FLAGS, draw_samples, sample_words, tables_are_valid


@triton.jit
def _q16(v):
    """A coordinate in units of 2^-16 pixel, rounded half to even, within +-2^20 pixels; NaN is 0."""
    limit = 1048576.0
    v = tl.where(v != v, 0.0, tl.minimum(tl.maximum(v, -limit), limit)).to(tl.float64) * 65536.0
    near = tl.floor(v + 0.5)
    whole = near.to(tl.int64)
    return tl.where((near - v == 0.5) & ((whole & 1) == 1), whole - 1, whole)


@triton.jit
def _axis_step(extent, out):
    """floor(extent / (2 out)) of a Q16 extent, and what is left, below 2 out."""
    divisor = (2 * out).to(tl.int64)
    whole = extent // divisor
    whole = tl.where(whole * divisor > extent, whole - 1, whole)  # division truncates
    return whole, (extent - whole * divisor).to(tl.uint32)


@triton.jit
def _axis_taps(start, whole, rest, size, out, k):
    """Bilinear taps of positions `k` of `out` over [start, start + extent) (Q16) of an axis of `size` pixels.

    floor((2 k + 1) extent / (2 out)) from what `_axis_step` found, by 32-bit divisions: `out` is at most 32767.
    """
    odd = (2 * k + 1).to(tl.uint32)
    step = odd.to(tl.int64) * whole + (odd * rest // (2 * out).to(tl.uint32)).to(tl.int64)
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
def _sample(image, upper, lower, fy, left, right, fx, mask):
    """Bilinear values at byte offsets of rows (`upper`, `lower`) and columns (`left`, `right`)."""
    p = tl.load(image + (upper + left), mask=mask, other=0).to(tl.float32)
    q = tl.load(image + (upper + right), mask=mask, other=0).to(tl.float32)
    r = tl.load(image + (lower + left), mask=mask, other=0).to(tl.float32)
    s = tl.load(image + (lower + right), mask=mask, other=0).to(tl.float32)
    top = p + fx * (q - p)
    return top + fy * (r + fx * (s - r) - top)


@triton.jit
def _normalisation(mean, std, channel):
    """scale and bias of a channel: byte * scale + bias is normalised."""
    deviation = tl.load(std + channel)
    return 1.0 / (255.0 * deviation), -tl.load(mean + channel) / deviation


@triton.jit
def _mix_tiles(
    a, b, lam, known, boxes, flip_a, flip_b, mean, std, out, height, width, out_height, out_width, CROP: tl.constexpr,
    LAST: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of a sample. `boxes`: eight Q16 numbers, those of the own and of the other image."""
    y = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    across = out_width * CHANNELS if LAST else out_width
    stride = width * CHANNELS
    if CROP:
        awhole, arest = _axis_step(boxes[3], out_width)
        bwhole, brest = _axis_step(boxes[7], out_width)
        whole, rest = _axis_step(boxes[2], out_height)
        ay0, ay1, afy = _axis_taps(boxes[0], whole, rest, height, out_height, y)
        whole, rest = _axis_step(boxes[6], out_height)
        by0, by1, bfy = _axis_taps(boxes[4], whole, rest, height, out_height, y)
        ay0, ay1, by0, by1 = ay0 * stride, ay1 * stride, by0 * stride, by1 * stride
    else:
        source = y * stride
    first = 0
    while first < across:
        column = (first + tl.arange(0, COLUMNS))[None, :]
        inside = (y < out_height) & (column < across)
        mask = inside & known
        x = column // CHANNELS if LAST else column
        xa, xb = tl.where(flip_a, out_width - 1 - x, x), tl.where(flip_b, out_width - 1 - x, x)
        if CROP:
            ax0, ax1, afx = _axis_taps(boxes[1], awhole, arest, width, out_width, xa)
            bx0, bx1, bfx = _axis_taps(boxes[5], bwhole, brest, width, out_width, xb)
        for c in tl.static_range(1 if LAST else CHANNELS):
            channel = column - x * CHANNELS if LAST else c
            if CROP:
                va = _sample(a, ay0, ay1, afy, ax0 * CHANNELS + channel, ax1 * CHANNELS + channel, afx, mask)
                vb = _sample(b, by0, by1, bfy, bx0 * CHANNELS + channel, bx1 * CHANNELS + channel, bfx, mask)
            else:
                va = tl.load(a + (source + (xa * CHANNELS + channel)), mask=mask, other=0).to(tl.float32)
                vb = tl.load(b + (source + (xb * CHANNELS + channel)), mask=mask, other=0).to(tl.float32)
            scale, bias = _normalisation(mean, std, channel)
            value = (lam * scale) * va + (((1 - lam) * scale) * vb + bias)
            target = y * across + column if LAST else (c * out_height + y) * out_width + column
            tl.store(out + target, value.to(out.dtype.element_ty), mask=inside)
        first += COLUMNS


@triton.jit
def _flat_values(image, at, row, flip, mask, CHANNELS: tl.constexpr, FLIP: tl.constexpr):
    """Bytes of an image at positions `at`, mirrored where `flip`; float32."""
    if FLIP:
        if flip:
            along = at % row  # pixel * CHANNELS + channel
            pixel = along - along % CHANNELS
            value = tl.load(image + (at + (row - CHANNELS) - 2 * pixel), mask=mask, other=0)
        else:
            value = tl.load(image + at, mask=mask, other=0)
    else:
        value = tl.load(image + at, mask=mask, other=0)
    return value.to(tl.float32)


@triton.jit
def _pick(k, v0, v1, v2, v3):
    return tl.where(k == 0, v0, tl.where(k == 1, v1, tl.where(k == 2, v2, v3)))


@triton.jit
def _mix_flat(
    a, b, lam, known, flip_a, flip_b, mean, std, out, size, row, FLIP: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """STEPS blocks of BLOCK elements of a sample of `size` bytes, VECTOR in a row for a thread; `row`: bytes of one;
    four channels at most.

    A thread works out the channel of its first element; the others follow by their place in the vector, which the
    compiler knows.
    """
    start = tl.program_id(1) * (STEPS * BLOCK)
    end = tl.minimum(start + STEPS * BLOCK, size)
    lane = tl.arange(0, VECTOR)[None, :]
    s0, b0 = _normalisation(mean, std, 0)
    s1, b1 = _normalisation(mean, std, min(1, CHANNELS - 1))
    s2, b2 = _normalisation(mean, std, min(2, CHANNELS - 1))
    s3, b3 = _normalisation(mean, std, CHANNELS - 1)
    while start < end:
        head = start + tl.arange(0, BLOCK // VECTOR)[:, None] * VECTOR
        at = head + lane
        inside = at < size
        va = _flat_values(a, at, row, flip_a, inside & known, CHANNELS, FLIP)
        vb = _flat_values(b, at, row, flip_b, inside & known, CHANNELS, FLIP)
        scale, bias = tl.zeros([1, VECTOR], tl.float32), tl.zeros([1, VECTOR], tl.float32)
        for c in tl.static_range(CHANNELS):
            channel = (head + c) % CHANNELS
            scale = tl.where(lane % CHANNELS == c, _pick(channel, s0, s1, s2, s3), scale)
            bias = tl.where(lane % CHANNELS == c, _pick(channel, b0, b1, b2, b3), bias)
        value = (lam * va + (1 - lam) * vb) * scale + bias
        tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
        start += BLOCK


@triton.jit
def _mix(
    images, image_stride, own, other, lam, known, boxes, flip_a, flip_b, mean, std, out, sample, height, width,
    out_height, out_width, size, CROP: tl.constexpr, FLIP: tl.constexpr, LAST: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """This program's part of a sample of `size` output elements; a sample that is not `known` becomes NaN."""
    a, b, target = images + own * image_stride, images + other * image_stride, out + sample * size
    lam = tl.where(known, lam, float("nan"))
    if VECTOR > 0:
        _mix_flat(
            a, b, lam, known, flip_a, flip_b, mean, std, target, size, width * CHANNELS, FLIP, CHANNELS, BLOCK, VECTOR,
            STEPS,
        )  # fmt: skip
    else:
        _mix_tiles(
            a, b, lam, known, boxes, flip_a, flip_b, mean, std, target, height, width, out_height, out_width, CROP,
            LAST, CHANNELS, ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["total", "height", "out_height"])
def mix_images_kernel(
    images, image_stride: tl.int64, total: tl.int64, index, partner, lam, mean, std, boxes, flips, out, flag, height,
    width, out_height, out_width, size, CROP: tl.constexpr, FLIP: tl.constexpr, LAST: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
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
    _mix(
        images, image_stride, own, other, tl.load(lam + sample), known, q, flip_a, flip_b, mean, std, out, sample,
        height, width, out_height, out_width, size, CROP, FLIP, LAST, CHANNELS, BLOCK, VECTOR, STEPS, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit
def _whole(x):
    """The one element of a block of one."""
    return tl.sum(x, 0)


@triton.jit(do_not_specialize=["total", "length", "member_count", "seed", "start", "height", "out_height"])
def mix_image_batch_kernel(
    images, image_stride: tl.int64, total: tl.int64, labels, tables, length: tl.int64, members, member_count: tl.int64,
    mean, std, scale_min, scale_max, log_min, log_max, seed: tl.int64, start: tl.int64, counter, out, label,
    partner_label, lam, index, partner, group, flag, height, width, out_height, out_width, size,
    HAS_MEMBERS: tl.constexpr, HAS_COUNTER: tl.constexpr, KEEP_LABELS: tl.constexpr, CROP: tl.constexpr,
    FLIP: tl.constexpr, LAST: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Draws its sample and mixes its part of it; the first program of a sample writes its six small outputs."""
    sample = tl.program_id(0).to(tl.int64)
    n = start + sample + tl.arange(0, 1)
    known = tables_are_valid(tables, length, member_count, HAS_MEMBERS)
    if HAS_COUNTER:
        n += tl.load(counter)
        known = known & (tl.load(counter) >= 0) & (_whole(n) >= 0)
    own, other, of, weight = sample * 0, sample * 0, sample * 0 - 1, (sample * 0).to(tl.float32)
    bits = (sample * 0).to(tl.uint32)
    if known:
        drawn, mate, groups, lams, words = draw_samples(tables, members, seed, n, n >= 0, HAS_MEMBERS, 128)
        own, other, of, weight = _whole(drawn), _whole(mate), _whole(groups), _whole(lams)
        bits = _whole(words)
        known = (own >= 0) & (own < total) & (other >= 0) & (other < total)  # there may be fewer images than examples
    if not known:
        tl.store(flag, 1)
    if tl.program_id(1) == 0:
        own_label = tl.load(labels + own, mask=known, other=0).to(tl.int64)
        other_label = own_label
        if (tl.load(tables + WORD_FLAGS) & KEEP_LABELS) == 0:
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
    _mix(
        images, image_stride, own, other, weight, known, q, flip_a, flip_b, mean, std, out, sample, height, width,
        out_height, out_width, size, CROP, FLIP, LAST, CHANNELS, BLOCK, VECTOR, STEPS, ROWS, COLUMNS,
    )  # fmt: skip
