"""Mixing kernels for images: crop, flip, normalize and mix pairs; `mix_image_batch` draws them in the same launch.

Without crops, if input and output have the same layout, images are processed as a flat sequence of bytes, with wide
loads and stores.
Otherwise a program processes rows of the output in tiles. The columns of a tile are elements (channels last) or pixels
(one channel at a time), so that bilinear taps are computed once per row and once per column.

An index out of range is not read: the sample becomes NaN and the error flag is set.
"""

from __future__ import annotations

import triton
import triton.language as tl
from spurmix.kernels.draw import WORD_FLAGS, draw_samples, sample_words, tables_are_valid
from spurmix.kernels.errors import is_weight, report

MIN_STD = tl.constexpr(0.0010000000474974513)
"""0.001 as a float32."""


@triton.jit
def _q16(v):
    """Coordinates in units of 2^-16 pixel, rounded half to even, clamped to +-2^20 pixels; NaN becomes 0."""
    limit = 1048576.0
    v = tl.where(v != v, 0.0, tl.minimum(tl.maximum(v, -limit), limit)).to(tl.float64) * 65536.0
    nearest = tl.floor(v + 0.5)
    integer = nearest.to(tl.int64)
    return tl.where((nearest - v == 0.5) & ((integer & 1) == 1), integer - 1, integer)


@triton.jit
def _axis_step(extent, out):
    """Quotient and remainder, rounded down, of a Q16 extent divided by 2 * out."""
    divisor = (2 * out).to(tl.int64)
    quotient = extent // divisor
    quotient = tl.where(quotient * divisor > extent, quotient - 1, quotient)  # integer division truncates
    return quotient, (extent - quotient * divisor).to(tl.uint32)


@triton.jit
def _axis_taps(start, quotient, remainder, size, out, k):
    """Bilinear taps of output positions `k` of `out` over [start, start + extent) (Q16) of an axis of `size` pixels.

    Computes floor((2 k + 1) extent / (2 out)) from the result of `_axis_step` with 32-bit divisions, which requires
    `out` <= 32767. Returns both positions and the weight of the second one.
    """
    odd = (2 * k + 1).to(tl.uint32)
    step = odd.to(tl.int64) * quotient + (odd * remainder // (2 * out).to(tl.uint32)).to(tl.int64)
    p = start + step - 32768
    p = tl.minimum(tl.maximum(p, 0), (size - 1).to(tl.int64) << 16)
    i0 = (p >> 16).to(tl.int32)
    return i0, tl.minimum(i0 + 1, size - 1), (p & 65535).to(tl.float32) * 0.0000152587890625


@triton.jit
def _crop_box(seed, n, block: tl.constexpr, height, width, scale_min, scale_max, log_ratio_min, log_ratio_max):
    """The random resized crop of samples `n`: top, left, height and width in pixels."""
    w0, w1, w2, w3 = sample_words(seed, n, block)
    unit = 2.3283064365386963e-10
    rows, columns = height.to(tl.float32), width.to(tl.float32)
    area = (height * width).to(tl.float32) * (scale_min + (scale_max - scale_min) * (w0.to(tl.float32) * unit))
    ratio = tl.exp(log_ratio_min + (log_ratio_max - log_ratio_min) * (w1.to(tl.float32) * unit))
    w = tl.minimum(columns, tl.sqrt(area * ratio))
    h = tl.minimum(rows, tl.sqrt(area / ratio))
    return w2.to(tl.float32) * unit * (rows - h), w3.to(tl.float32) * unit * (columns - w), h, w


@triton.jit
def _interpolate(image_ptr, upper, lower, fy, left, right, fx, mask):
    """Bilinear values from the byte offsets of two rows (`upper`, `lower`) and of two columns (`left`, `right`)."""
    p = tl.load(image_ptr + (upper + left), mask=mask, other=0).to(tl.float32)
    q = tl.load(image_ptr + (upper + right), mask=mask, other=0).to(tl.float32)
    r = tl.load(image_ptr + (lower + left), mask=mask, other=0).to(tl.float32)
    s = tl.load(image_ptr + (lower + right), mask=mask, other=0).to(tl.float32)
    top = p + fx * (q - p)
    return top + fy * (r + fx * (s - r) - top)


@triton.jit
def _normalization(mean_ptr, std_ptr, channel):
    """Scale and bias of a channel: byte * scale + bias is the normalized value."""
    std = tl.load(std_ptr + channel)
    return 1.0 / (255.0 * std), -tl.load(mean_ptr + channel) / std


@triton.jit
def _mix_tiles(
    a_ptr, b_ptr, lam, valid, boxes, flip_a, flip_b, mean_ptr, std_ptr, out_ptr, height, width, out_height, out_width,
    CROP: tl.constexpr, CHANNELS_LAST: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mix ROWS output rows of a sample in tiles of COLUMNS. `boxes`: Q16 boxes of the index's and the partner's image."""
    y = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    row_size = out_width * CHANNELS if CHANNELS_LAST else out_width
    stride = width * CHANNELS
    if CROP:
        ax_quotient, ax_remainder = _axis_step(boxes[3], out_width)
        bx_quotient, bx_remainder = _axis_step(boxes[7], out_width)
        quotient, remainder = _axis_step(boxes[2], out_height)
        ay0, ay1, afy = _axis_taps(boxes[0], quotient, remainder, height, out_height, y)
        quotient, remainder = _axis_step(boxes[6], out_height)
        by0, by1, bfy = _axis_taps(boxes[4], quotient, remainder, height, out_height, y)
        ay0, ay1, by0, by1 = ay0 * stride, ay1 * stride, by0 * stride, by1 * stride
    else:
        row_offset = y * stride
    first = 0
    while first < row_size:
        column = (first + tl.arange(0, COLUMNS))[None, :]
        out_mask = (y < out_height) & (column < row_size)
        mask = out_mask & valid
        x = column // CHANNELS if CHANNELS_LAST else column
        xa, xb = tl.where(flip_a, out_width - 1 - x, x), tl.where(flip_b, out_width - 1 - x, x)
        if CROP:
            ax0, ax1, afx = _axis_taps(boxes[1], ax_quotient, ax_remainder, width, out_width, xa)
            bx0, bx1, bfx = _axis_taps(boxes[5], bx_quotient, bx_remainder, width, out_width, xb)
        for c in tl.static_range(1 if CHANNELS_LAST else CHANNELS):
            channel = column - x * CHANNELS if CHANNELS_LAST else c
            if CROP:
                va = _interpolate(a_ptr, ay0, ay1, afy, ax0 * CHANNELS + channel, ax1 * CHANNELS + channel, afx, mask)
                vb = _interpolate(b_ptr, by0, by1, bfy, bx0 * CHANNELS + channel, bx1 * CHANNELS + channel, bfx, mask)
            else:
                va = tl.load(a_ptr + (row_offset + (xa * CHANNELS + channel)), mask=mask, other=0).to(tl.float32)
                vb = tl.load(b_ptr + (row_offset + (xb * CHANNELS + channel)), mask=mask, other=0).to(tl.float32)
            scale, bias = _normalization(mean_ptr, std_ptr, channel)
            value = (lam * scale) * va + (((1 - lam) * scale) * vb + bias)
            offset = y * row_size + column if CHANNELS_LAST else (c * out_height + y) * out_width + column
            tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=out_mask)
        first += COLUMNS


@triton.jit
def _load_flat(image_ptr, offset, row_size, flip, mask, CHANNELS: tl.constexpr, FLIP: tl.constexpr):
    """Bytes of an image at `offset` as float32, mirrored horizontally if `flip`."""
    if FLIP:
        if flip:
            in_row = offset % row_size  # pixel * CHANNELS + channel
            pixel = in_row - in_row % CHANNELS
            value = tl.load(image_ptr + (offset + (row_size - CHANNELS) - 2 * pixel), mask=mask, other=0)
        else:
            value = tl.load(image_ptr + offset, mask=mask, other=0)
    else:
        value = tl.load(image_ptr + offset, mask=mask, other=0)
    return value.to(tl.float32)


@triton.jit
def _select(k, v0, v1, v2, v3):
    return tl.where(k == 0, v0, tl.where(k == 1, v1, tl.where(k == 2, v2, v3)))


@triton.jit
def _mix_flat(
    a_ptr, b_ptr, lam, valid, flip_a, flip_b, mean_ptr, std_ptr, out_ptr, size, row_size, FLIP: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Mix STEPS blocks of BLOCK elements of a sample of `size` elements, VECTOR consecutive ones per thread.

    Requires at most four channels. A thread computes the channel of its first element only. The channels of the others
    follow from their position in the vector, which is a compile-time constant.
    """
    start = tl.program_id(1) * (STEPS * BLOCK)
    end = tl.minimum(start + STEPS * BLOCK, size)
    lane = tl.arange(0, VECTOR)[None, :]
    s0, b0 = _normalization(mean_ptr, std_ptr, 0)
    s1, b1 = _normalization(mean_ptr, std_ptr, min(1, CHANNELS - 1))
    s2, b2 = _normalization(mean_ptr, std_ptr, min(2, CHANNELS - 1))
    s3, b3 = _normalization(mean_ptr, std_ptr, CHANNELS - 1)
    while start < end:
        head = start + tl.arange(0, BLOCK // VECTOR)[:, None] * VECTOR
        offset = head + lane
        mask = offset < size
        va = _load_flat(a_ptr, offset, row_size, flip_a, mask & valid, CHANNELS, FLIP)
        vb = _load_flat(b_ptr, offset, row_size, flip_b, mask & valid, CHANNELS, FLIP)
        scale, bias = tl.zeros([1, VECTOR], tl.float32), tl.zeros([1, VECTOR], tl.float32)
        for c in tl.static_range(CHANNELS):
            channel = (head + c) % CHANNELS
            scale = tl.where(lane % CHANNELS == c, _select(channel, s0, s1, s2, s3), scale)
            bias = tl.where(lane % CHANNELS == c, _select(channel, b0, b1, b2, b3), bias)
        value = (lam * va + (1 - lam) * vb) * scale + bias
        tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=mask)
        start += BLOCK


@triton.jit
def _check_normalization(mean_ptr, std_ptr, error_ptr, CHANNELS: tl.constexpr):
    """Set the error flag if mean or std is outside the limits of the CPU operators. One program checks."""
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        for channel in tl.static_range(CHANNELS):
            mean, std = tl.load(mean_ptr + channel), tl.load(std_ptr + channel)
            report(error_ptr, True, (mean >= 0) & (mean <= 1) & (std >= MIN_STD) & (std <= 2))


@triton.jit
def _mix(
    images_ptr, image_stride, index, partner, lam, valid, boxes, flip_a, flip_b, mean_ptr, std_ptr, out_ptr, sample,
    height, width, out_height, out_width, size, CROP: tl.constexpr, FLIP: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mix this program's part of a sample of `size` output elements; a sample that is not `valid` becomes NaN."""
    a_ptr, b_ptr = images_ptr + index * image_stride, images_ptr + partner * image_stride
    sample_ptr = out_ptr + sample * size
    lam = tl.where(valid, lam, float("nan"))
    if VECTOR > 0:
        _mix_flat(
            a_ptr, b_ptr, lam, valid, flip_a, flip_b, mean_ptr, std_ptr, sample_ptr, size, width * CHANNELS, FLIP,
            CHANNELS, BLOCK, VECTOR, STEPS,
        )  # fmt: skip
    else:
        _mix_tiles(
            a_ptr, b_ptr, lam, valid, boxes, flip_a, flip_b, mean_ptr, std_ptr, sample_ptr, height, width, out_height,
            out_width, CROP, CHANNELS_LAST, CHANNELS, ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["total", "height", "out_height"])
def mix_images_kernel(  # noqa: DOC107
    images_ptr, image_stride: tl.int64, total: tl.int64, index_ptr, partner_ptr, lam_ptr, mean_ptr, std_ptr, boxes_ptr,
    flips_ptr, out_ptr, error_ptr, height, width, out_height, out_width, size, CROP: tl.constexpr, FLIP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Crop, flip, normalize and mix given pairs of images.

    Grid: (B, cdiv(size, BLOCK * STEPS)) for the flat pass (VECTOR > 0), or (B, cdiv(out_height, ROWS)) for tiles.

    Args:
        images_ptr: uint8 `[total, height, width, CHANNELS]`, on the device or in pinned host memory.
        image_stride: bytes between two images.
        total: number of images.
        index_ptr: int64 `[B]`.
        partner_ptr: int64 `[B]`.
        lam_ptr: float32 `[B]`: weight of the index's image; the partner's has weight 1 - lam.
        mean_ptr: float32 `[CHANNELS]`, of bytes divided by 255.
        std_ptr: float32 `[CHANNELS]`, of bytes divided by 255.
        boxes_ptr: float32 `[B, 2, 4]`: top, left, height and width in pixels. Not read unless CROP.
        flips_ptr: uint8 `[B, 2]`. Not read unless FLIP.
        out_ptr: output, float `[B, CHANNELS, out_height, out_width]`.
        error_ptr: error flag of the device, int32 `[1]`.
        height: height of the images.
        width: width of the images.
        out_height: height of the output, at most 32767.
        out_width: width of the output, at most 32767.
        size: CHANNELS * out_height * out_width.
        CROP: whether there are boxes.
        FLIP: whether there are flips.
        CHANNELS_LAST: whether the output is channels last.
        CHANNELS: number of channels.
        BLOCK: elements per block of the flat pass.
        VECTOR: consecutive elements per thread of the flat pass; 0 selects tiles.
        STEPS: blocks per program of the flat pass.
        ROWS: rows per program of the tiled pass.
        COLUMNS: columns of a tile.
    """
    _check_normalization(mean_ptr, std_ptr, error_ptr, CHANNELS)
    sample = tl.program_id(0).to(tl.int64)
    index, partner = tl.load(index_ptr + sample), tl.load(partner_ptr + sample)
    lam = tl.load(lam_ptr + sample)
    in_range = (index >= 0) & (index < total) & (partner >= 0) & (partner < total)
    valid = is_weight(lam)
    zero = sample * 0
    boxes = (zero, zero, zero, zero, zero, zero, zero, zero)
    if CROP:
        box_ptr = boxes_ptr + 8 * sample
        box = tl.load(box_ptr + tl.arange(0, 8))
        valid = valid & (tl.sum((box != box).to(tl.int32), 0) == 0)
        boxes = (
            _q16(tl.load(box_ptr)), _q16(tl.load(box_ptr + 1)), _q16(tl.load(box_ptr + 2)), _q16(tl.load(box_ptr + 3)),
            _q16(tl.load(box_ptr + 4)), _q16(tl.load(box_ptr + 5)), _q16(tl.load(box_ptr + 6)),
            _q16(tl.load(box_ptr + 7)),
        )  # fmt: skip
    report(error_ptr, in_range, valid)
    valid = in_range & valid  # the interpreter requires an integer comparison first
    flip_a, flip_b = zero != 0, zero != 0
    if FLIP:
        flip_a, flip_b = tl.load(flips_ptr + 2 * sample) != 0, tl.load(flips_ptr + 2 * sample + 1) != 0
    _mix(
        images_ptr, image_stride, index, partner, lam, valid, boxes, flip_a, flip_b, mean_ptr,
        std_ptr, out_ptr, sample, height, width, out_height, out_width, size, CROP, FLIP, CHANNELS_LAST, CHANNELS,
        BLOCK, VECTOR, STEPS, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit
def _scalar(x):
    """The element of a block of one."""
    return tl.sum(x, 0)


@triton.jit(do_not_specialize=["total", "length", "member_count", "seed", "start", "height", "out_height"])
def mix_image_batch_kernel(  # noqa: DOC107
    images_ptr, image_stride: tl.int64, total: tl.int64, labels_ptr, tables_ptr, length: tl.int64, members_ptr,
    member_count: tl.int64, mean_ptr, std_ptr, scale_min, scale_max, log_ratio_min, log_ratio_max, seed: tl.int64,
    start: tl.int64, counter_ptr, out_ptr, label_ptr, partner_label_ptr, lam_ptr, index_ptr, partner_ptr, group_ptr,
    error_ptr, height, width, out_height, out_width, size, HAS_MEMBERS: tl.constexpr, HAS_COUNTER: tl.constexpr,
    FLAG_KEEP_LABELS: tl.constexpr, CROP: tl.constexpr, FLIP: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Draw a batch of pairs and mix their images.

    Every program draws its sample again, which costs less than a second launch. The first program of a sample writes
    the label, partner label, lam, index, partner and group. Grid: as for `mix_images_kernel`.

    Args:
        images_ptr: uint8 `[total, height, width, CHANNELS]`, on the device or in pinned host memory.
        image_stride: bytes between two images.
        total: number of images.
        labels_ptr: class of each image, integers `[total]`.
        tables_ptr: packed tables, int64 `[length]`.
        length: number of words of the tables.
        members_ptr: example number of each position, int32 or int64 `[member_count]`.
        member_count: number of members; 0 if positions are example numbers.
        mean_ptr: float32 `[CHANNELS]`, of bytes divided by 255.
        std_ptr: float32 `[CHANNELS]`, of bytes divided by 255.
        scale_min: minimum area of a crop, as a fraction of the image.
        scale_max: maximum area of a crop.
        log_ratio_min: minimum logarithm of the aspect ratio of a crop.
        log_ratio_max: maximum logarithm of the aspect ratio.
        seed: seed of the sequence, in [0, 2^63).
        start: first sample number.
        counter_ptr: int64 `[1]` that is added to `start`, or None.
        out_ptr: output, float `[B, CHANNELS, out_height, out_width]`.
        label_ptr: output, int64 `[B]`.
        partner_label_ptr: output, int64 `[B]`.
        lam_ptr: output, float32 `[B]`.
        index_ptr: output, int64 `[B]`.
        partner_ptr: output, int64 `[B]`.
        group_ptr: output, int64 `[B]`: the group of the index.
        error_ptr: error flag of the device, int32 `[1]`.
        height: height of the images.
        width: width of the images.
        out_height: height of the output, at most 32767.
        out_width: width of the output, at most 32767.
        size: CHANNELS * out_height * out_width.
        HAS_MEMBERS: whether `member_count` is not 0.
        HAS_COUNTER: whether `counter_ptr` is not None.
        FLAG_KEEP_LABELS: bit of the tables' flags: the partner label is the label of the index.
        CROP: whether images are cropped.
        FLIP: whether images are flipped.
        CHANNELS_LAST: whether the output is channels last.
        CHANNELS: number of channels.
        BLOCK: elements per block of the flat pass.
        VECTOR: consecutive elements per thread of the flat pass; 0 selects tiles.
        STEPS: blocks per program of the flat pass.
        ROWS: rows per program of the tiled pass.
        COLUMNS: columns of a tile.
    """
    _check_normalization(mean_ptr, std_ptr, error_ptr, CHANNELS)
    sample = tl.program_id(0).to(tl.int64)
    n = start + sample + tl.arange(0, 1)
    valid = tables_are_valid(tables_ptr, length, member_count, HAS_MEMBERS)
    if HAS_COUNTER:
        n += tl.load(counter_ptr)
        valid = valid & (tl.load(counter_ptr) >= 0) & (_scalar(n) >= 0)
    index, partner, group, lam = sample * 0, sample * 0, sample * 0 - 1, (sample * 0).to(tl.float32)
    flip_bits = (sample * 0).to(tl.uint32)
    if valid:
        indices, partners, groups, lams, words = draw_samples(
            tables_ptr, members_ptr, seed, n, n >= 0, HAS_MEMBERS, 128
        )
        index, partner, group, lam = _scalar(indices), _scalar(partners), _scalar(groups), _scalar(lams)
        flip_bits = _scalar(words)
        # There may be fewer images than the tables have examples.
        valid = (group >= 0) & (index >= 0) & (index < total) & (partner >= 0) & (partner < total)
    report(error_ptr, valid, True)
    if tl.program_id(1) == 0:
        label = tl.load(labels_ptr + index, mask=valid, other=0).to(tl.int64)
        partner_label = label
        if (tl.load(tables_ptr + WORD_FLAGS) & FLAG_KEEP_LABELS) == 0:
            partner_label = tl.load(labels_ptr + partner, mask=valid, other=0).to(tl.int64)
        tl.store(label_ptr + sample, label)
        tl.store(partner_label_ptr + sample, partner_label)
        tl.store(lam_ptr + sample, tl.where(valid, lam, float("nan")))
        tl.store(index_ptr + sample, index)
        tl.store(partner_ptr + sample, partner)
        tl.store(group_ptr + sample, group)
    zero = sample * 0
    boxes = (zero, zero, zero, zero, zero, zero, zero, zero)
    if CROP:
        at, al, ah, aw = _crop_box(seed, n, 2, height, width, scale_min, scale_max, log_ratio_min, log_ratio_max)
        bt, bl, bh, bw = _crop_box(seed, n, 3, height, width, scale_min, scale_max, log_ratio_min, log_ratio_max)
        boxes = (
            _scalar(_q16(at)), _scalar(_q16(al)), _scalar(_q16(ah)), _scalar(_q16(aw)),
            _scalar(_q16(bt)), _scalar(_q16(bl)), _scalar(_q16(bh)), _scalar(_q16(bw)),
        )  # fmt: skip
    flip_a, flip_b = zero != 0, zero != 0
    if FLIP:
        flip_a, flip_b = (flip_bits & 1) != 0, (flip_bits & 2) != 0
    _mix(
        images_ptr, image_stride, index, partner, lam, valid, boxes, flip_a, flip_b, mean_ptr, std_ptr, out_ptr, sample,
        height, width, out_height, out_width, size, CROP, FLIP, CHANNELS_LAST, CHANNELS, BLOCK, VECTOR, STEPS, ROWS,
        COLUMNS,
    )  # fmt: skip
