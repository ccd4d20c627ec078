"""Kernels between the planes of a video frame and BGR, compiled by Numba.

FFmpeg's own conversion is not used for this. To 8-bit BGR it lets extreme colours of the limited range wrap around; to
16 bits it is off by up to one level of eight, which is four of ten; and there and back is never the identity.

Chroma samples of halved planes lie on the left one of two columns and between two rows, as H.264 and HEVC have it
where nothing else is said. They are interpolated linearly, and changes go back through the transposed filter.
"""

from __future__ import annotations

import numpy as np

from swapfast.augment.kernels.jit import kernel

A = np.ndarray
_F = np.float32


@kernel()
def _spread_row(first: A, second: A, weight: float, halves_x: bool, x0: int, x1: int, row: A) -> None:
    """Write one row of a chroma plane at full width into ``row``: between two rows, weight of the first.

    x0, x1: the columns that are wanted; one beside each may be written too
    """
    width, count = row.size, first.size
    other = _F(1) - weight
    if halves_x:  # parts of the rows are counted from 0: a start that is not known costs the compiler its 8 at once
        low, high = x0 >> 1, min((x1 >> 1) + 1, count)
        near, far, part = first[low:high], second[low:high], row[2 * low :]
        for x in range(high - low):
            part[2 * x] = weight * _F(near[x]) + other * _F(far[x])
        for x in range(1, x1 - 2 * low, 2):
            after = part[x + 1] if x + 1 < width - 2 * low else part[x - 1]
            part[x] = _F(0.5) * (part[x - 1] + after)
    else:
        near, far, part = first[x0:x1], second[x0:x1], row[x0:x1]
        for x in range(x1 - x0):
            part[x] = weight * _F(near[x]) + other * _F(far[x])


@kernel()
def _chroma_row(plane: A, y: int, halves_x: bool, halves_y: bool, x0: int, x1: int, row: A) -> None:
    """Write chroma of picture row ``y`` at full width into ``row``, where its columns are wanted."""
    if not halves_y:
        _spread_row(plane[y], plane[y], _F(1), halves_x, x0, x1, row)
        return
    near = y >> 1
    far = near - 1 if y & 1 == 0 else near + 1
    far = min(max(far, 0), plane.shape[0] - 1)
    _spread_row(plane[near], plane[far], _F(0.75), halves_x, x0, x1, row)


@kernel()
def planes_to_bgr(
    luma: A, u_plane: A, v_plane: A, halves_x: bool, halves_y: bool, c: A, peak: int, box: A, out: A
) -> None:
    """Write the first three channels of ``out``, (H, W, 3 or 4), 0..peak, within a box.

    c: float32: luma offset, chroma offset, then factors: luma, V in red, U in green, V in green, U in blue
    box: x0, y0, x1, y1, the last two outside
    """
    width = luma.shape[1]
    x0, y0, x1, y1 = box[0], box[1], box[2], box[3]
    u = np.empty(width, np.float32)
    v = np.empty(width, np.float32)
    row = np.empty((3, width), np.float32)  # one channel after the other: the compiler does 8 pixels at once
    top = _F(peak)
    offset, middle, scale, v_red, u_green, v_green, u_blue = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    for y in range(y0, y1):
        _chroma_row(u_plane, y, halves_x, halves_y, x0, x1, u)
        _chroma_row(v_plane, y, halves_x, halves_y, x0, x1, v)
        blue, green, red = row[0], row[1], row[2]
        luma_part, u_part, v_part, out_part = luma[y, x0:x1], u[x0:x1], v[x0:x1], out[y, x0:x1]
        for x in range(x1 - x0):
            light = (_F(luma_part[x]) - offset) * scale
            du, dv = u_part[x] - middle, v_part[x] - middle
            blue[x] = min(max(light + u_blue * du, _F(0)), top) + _F(0.5)
            green[x] = min(max(light + u_green * du + v_green * dv, _F(0)), top) + _F(0.5)
            red[x] = min(max(light + v_red * dv, _F(0)), top) + _F(0.5)
        for x in range(x1 - x0):
            out_part[x, 0] = np.int32(blue[x])
            out_part[x, 1] = np.int32(green[x])
            out_part[x, 2] = np.int32(red[x])


@kernel()
def put_changes(
    new: A, old: A, luma: A, u_plane: A, v_plane: A, halves_x: bool, halves_y: bool, c: A, top: int, box: A
) -> None:
    """Change the planes, in place, where ``new`` and ``old``, (H, W, 3 or 4) BGR, differ within a box; nothing else.

    c: float32: luma offset, 3 factors of B, G, R in luma, 3 in U, 3 in V
    top: largest value of a plane
    box: x0, y0, x1, y1, the last two outside
    """
    height, width = luma.shape
    x0, y0, x1, y1 = box[0], box[1], box[2], box[3]
    step = 2 if halves_y else 1
    du = np.zeros(width, np.float32)
    dv = np.zeros(width, np.float32)
    limit = _F(top)
    for low in range(y0 // step * step, y1, step):
        du[x0:x1] = 0
        dv[x0:x1] = 0
        rows = min(step, height - low)
        changed = False
        for y in range(max(low, y0), min(low + rows, y1)):
            for x in range(x0, x1):
                b, g, r = new[y, x, 0], new[y, x, 1], new[y, x, 2]
                b0, g0, r0 = old[y, x, 0], old[y, x, 1], old[y, x, 2]
                if b == b0 and g == g0 and r == r0:
                    continue
                changed = True
                value = c[0] + c[1] * _F(b) + c[2] * _F(g) + c[3] * _F(r)
                before = c[0] + c[1] * _F(b0) + c[2] * _F(g0) + c[3] * _F(r0)
                # What rounding took is given back; what was beyond white or black is not.
                rest = min(max(_F(luma[y, x]) - before, _F(-0.75)), _F(0.75))
                luma[y, x] = np.int32(min(max(value + rest, _F(0)), limit) + _F(0.5))
                db, dg, dr = _F(b) - _F(b0), _F(g) - _F(g0), _F(r) - _F(r0)
                du[x] += c[4] * db + c[5] * dg + c[6] * dr
                dv[x] += c[7] * db + c[8] * dg + c[9] * dr
        if not changed:
            continue
        row = low // step
        share = _F(1) / _F(rows)
        first, last = (x0 >> 1, (x1 >> 1) + 1) if halves_x else (x0, x1)
        for column in range(first, min(last, u_plane.shape[1])):
            if halves_x:
                x = 2 * column
                left, right = max(x - 1, 0), min(x + 1, width - 1)
                a = _F(0.25) * (du[left] + du[right]) + _F(0.5) * du[x]
                b = _F(0.25) * (dv[left] + dv[right]) + _F(0.5) * dv[x]
            else:
                a, b = du[column], dv[column]
            if a != 0 or b != 0:
                u_plane[row, column] = np.int32(min(max(_F(u_plane[row, column]) + share * a, _F(0)), limit) + _F(0.5))
                v_plane[row, column] = np.int32(min(max(_F(v_plane[row, column]) + share * b, _F(0)), limit) + _F(0.5))
