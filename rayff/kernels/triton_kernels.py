"""The kernels of a GPU, for Triton; `rayff.kernels.gpu` calls them.

All see channels-last memory as rows, one a pixel, of a pitch that may be larger than the number of
channels (see `rayff.kernels.gpu.pitched`). A program works on a tile of some rows by PADDED
channels, a power of two that covers the pitch.
"""

# Triton knows neither annotations of types nor how mypy sees its decorator.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return"

import triton
import triton.language as tl


@triton.jit
def active(y):
    """Return relu(y), in float32; NaN stays what it is."""
    wide = y.to(tl.float32)
    return tl.where(wide < 0, 0.0, wide)


@triton.jit
def drawn(
    dropout_state,
    image,
    rows,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Return dropout's random bytes for some pixels of an image, (ROWS, PADDED)."""
    key = tl.load(dropout_state)
    step = tl.load(dropout_state + 1)
    first = tl.load(dropout_state + 2)
    BLOCKS: tl.constexpr = (CHANNELS + 15) // 16
    block = tl.arange(0, PADDED // 16)
    counter = ((first + image) * PIXELS + rows)[:, None] * BLOCKS + block[None, :]
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    step_low, step_high = low * 0 + step.to(tl.uint32), low * 0 + (step >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(key, low, high, step_low, step_high)
    words = tl.join(tl.join(a, c), tl.join(b, d)).reshape(ROWS, PADDED // 4)
    shifts = (tl.arange(0, 4) * 8).to(tl.uint32)
    return ((words[:, :, None] >> shifts[None, None, :]) & 255).reshape(ROWS, PADDED)


@triton.jit
def draw(
    target,
    dropout_state,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write dropout's random bytes for a part of an image."""
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, channels = part * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    found = drawn(dropout_state, image, rows, PIXELS, CHANNELS, ROWS, PADDED)
    places = target + image * PIXELS * CHANNELS + rows[:, None] * CHANNELS + channels[None, :]
    inside = (rows < PIXELS)[:, None] & (channels < CHANNELS)[None, :]
    tl.store(places, found.to(tl.uint8), mask=inside)


@triton.jit
def statistics(
    y,
    dropout_state,
    partial,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    DROPPED: tl.constexpr,
):
    """Put dropout's zeros into a part of an image; find sums and squares of its channels.

    `partial` gets, for each part, the sum of h of each channel and that of the squares of its
    distance from its mean in the part.
    """
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, channels = part * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (rows < PIXELS)[:, None] & (channels < CHANNELS)[None, :]
    places = y + image * PIXELS * PITCH + rows[:, None] * PITCH + channels[None, :]
    value = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    if DROPPED > 0:
        found = drawn(dropout_state, image, rows, PIXELS, CHANNELS, ROWS, PADDED)
        value = tl.where(found >= DROPPED, value, value * 0.0)  # NaN comes through
        tl.store(places, value, mask=inside)
    h = active(value)
    count = tl.minimum(PIXELS - part * ROWS, ROWS)
    total = tl.sum(h, axis=0)
    away = tl.where(inside, h - (total / count)[None, :], 0.0)
    target = partial + (image * tl.num_programs(1) + part) * 2 * CHANNELS + channels
    tl.store(target, total, mask=channels < CHANNELS)
    tl.store(target + CHANNELS, tl.sum(away * away, axis=0), mask=channels < CHANNELS)


@triton.jit
def classes(
    partial,
    labels,
    normal,
    goodness,
    losses,
    scale,
    factor,
    epsilon,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    MEMBERS: tl.constexpr,
    PADDED: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """Join the parts of an image, by group: `normal` gets mean, slope and gradient of each.

    MEMBERS and PADDED are powers of two: of the channels of a group in all parts, and of groups.
    """
    image = tl.program_id(0).to(tl.int64)
    GROUP: tl.constexpr = CHANNELS // CLASSES
    group, member = tl.arange(0, PADDED), tl.arange(0, MEMBERS)
    part, channel = member // GROUP, member % GROUP
    known = (group < CLASSES)[:, None] & (part < PARTS)[None, :]
    places = (image * PARTS + part[None, :]) * 2 * CHANNELS
    places = partial + places + group[:, None] * GROUP + channel[None, :]
    total = tl.load(places, mask=known, other=0.0)
    squares = tl.load(places + CHANNELS, mask=known, other=0.0)
    count = tl.maximum(tl.minimum(PIXELS - part * ROWS, ROWS), 1).to(tl.float32)[None, :]
    mean = tl.sum(total, axis=1) / (PIXELS * GROUP)
    away = tl.where(known, total / count - mean[:, None], 0.0)
    variance = tl.sum(squares + away * away * count, axis=1) / (PIXELS * GROUP)
    logits = mean * scale
    inside = group < CLASSES
    tl.store(goodness + image * CLASSES + group, logits, mask=inside)
    target = normal + image * 3 * CLASSES + group
    tl.store(target, mean, mask=inside)
    slope = scale / tl.sqrt_rn(variance * scale * scale + epsilon)
    tl.store(target + CLASSES, slope, mask=inside)
    if LEARNS:
        label = group == tl.load(labels + image)
        logits = tl.where(inside, logits, float("-inf"))
        below = logits - tl.max(logits, axis=0)
        powers = tl.exp(below)
        total_power = tl.sum(powers, axis=0)
        loss = tl.log(total_power) - tl.sum(tl.where(label, below, 0.0), axis=0)
        tl.store(losses + image, loss)
        gradient = (powers / total_power - tl.where(label, 1.0, 0.0)) * factor
        tl.store(target + 2 * CLASSES, gradient, mask=inside)


@triton.jit
def outputs(
    y,
    normal,
    features,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    CLASSES: tl.constexpr,
    FEATURE_PITCH: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """Write a part of an image's features, and the gradient in place of y."""
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, channels = part * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    known = channels < CHANNELS
    inside = (rows < PIXELS)[:, None] & known[None, :]
    group = normal + image * 3 * CLASSES + channels // (CHANNELS // CLASSES)
    mean = tl.load(group, mask=known, other=0.0)
    slope = tl.load(group + CLASSES, mask=known, other=0.0)
    places = y + image * PIXELS * PITCH + rows[:, None] * PITCH + channels[None, :]
    value = tl.load(places, mask=inside, other=0.0)
    normalised = (active(value) - mean[None, :]) * slope[None, :]
    target = features + image * PIXELS * FEATURE_PITCH
    target = target + rows[:, None] * FEATURE_PITCH + channels[None, :]
    writable = (rows < PIXELS)[:, None] & (channels < FEATURE_PITCH)[None, :]
    tl.store(target, normalised, mask=writable)
    if LEARNS:
        each = tl.load(group + 2 * CLASSES, mask=known, other=0.0)
        tl.store(places, tl.where(value > 0, each[None, :], 0.0), mask=inside)


@triton.jit
def cell_statistics(
    y,
    dropout_state,
    partial,
    mean,
    square,
    scale,
    PIXELS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,
    CELLS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    DROPPED: tl.constexpr,
    SQUARES: tl.constexpr,
):
    """Put dropout's zeros into a cell of HIGH x WIDE pixels; find the moments of its channels.

    `partial` gets what `statistics` writes for a part, `mean` and `square` the means of h and of
    its square, dropout's scale included. ROWS is a power of two that covers WIDE.
    """
    image, cell = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column, channels = tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (column < WIDE)[:, None] & (channels < CHANNELS)[None, :]
    total = tl.zeros((PADDED,), tl.float32)
    squares = tl.zeros((PADDED,), tl.float32)  # of the distances from the mean
    for row in range(HIGH):
        rows = (cell // CELLS * HIGH + row) * WIDTH + cell % CELLS * WIDE + column
        places = y + image * PIXELS * PITCH + rows[:, None] * PITCH + channels[None, :]
        value = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        if DROPPED > 0:
            found = drawn(dropout_state, image, rows, PIXELS, CHANNELS, ROWS, PADDED)
            value = tl.where(found >= DROPPED, value, value * 0.0)  # NaN comes through
            tl.store(places, value, mask=inside)
        h = active(value)
        own = tl.sum(h, axis=0)
        away = tl.where(inside, h - (own / WIDE)[None, :], 0.0)
        # two sets of pixels in one (Chan et al., 1979)
        apart = own / WIDE - total / tl.maximum(row * WIDE, 1)
        weight = row * WIDE * 1.0 / (row + 1)
        squares += tl.sum(away * away, axis=0) + apart * apart * weight
        total += own
    known = channels < CHANNELS
    count: tl.constexpr = HIGH * WIDE
    target = partial + (image * CELLS * CELLS + cell) * 2 * CHANNELS + channels
    tl.store(target, total, mask=known)
    tl.store(target + CHANNELS, squares, mask=known)
    place = (image * CELLS * CELLS + cell) * CHANNELS + channels
    average = total / count
    tl.store(mean + place, average * scale, mask=known)
    if SQUARES:
        power = squares / count + average * average
        tl.store(square + place, power * scale * scale, mask=known)


@triton.jit
def cell_gradient(
    y,
    base,
    slope,
    PIXELS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,
    CELLS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    SLOPED: tl.constexpr,
):
    """Replace a part of y by base + slope * y of its cell where y > 0, and by 0 elsewhere."""
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, channels = part * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (rows < PIXELS)[:, None] & (channels < CHANNELS)[None, :]
    cell = image * CELLS * CELLS + rows // WIDTH // HIGH * CELLS + rows % WIDTH // WIDE
    coefficients = cell[:, None] * CHANNELS + channels[None, :]
    places = y + image * PIXELS * PITCH + rows[:, None] * PITCH + channels[None, :]
    value = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    found = tl.load(base + coefficients, mask=inside, other=0.0)
    if SLOPED:
        found += tl.load(slope + coefficients, mask=inside, other=0.0) * value
    tl.store(places, tl.where(value > 0, found, 0.0), mask=inside)


@triton.jit
def join(
    features,
    shortcut,
    target,
    rows_in_all,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    OWN_PITCH: tl.constexpr,
    OTHER: tl.constexpr,
    OTHER_PITCH: tl.constexpr,
    OTHER_FIRST: tl.constexpr,
    TARGET_PITCH: tl.constexpr,
    POOLED: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write OWN channels of features and, from OTHER_FIRST on, add OTHER of the shortcut.

    WIDTH is that of the square target; where POOLED the shortcut's is twice as large.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, PADDED)
    there = (rows < rows_in_all)[:, None]
    own = there & (channels < OWN)[None, :]
    places = features + rows[:, None] * OWN_PITCH + channels[None, :]
    found = tl.load(places, mask=own, other=0.0).to(tl.float32)
    other = channels - OTHER_FIRST
    inside = there & ((other >= 0) & (other < OTHER))[None, :]
    if POOLED:
        # row r of the target begins at twice its height and width
        source = rows // WIDTH * (4 * WIDTH) + rows % WIDTH * 2
    else:
        source = rows
    places = shortcut + source[:, None] * OTHER_PITCH + other[None, :]
    value = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    if POOLED:  # in the order of torch's avg_pool2d, and rounded as it rounds
        value += tl.load(places + OTHER_PITCH, mask=inside, other=0.0).to(tl.float32)
        below = places + 2 * WIDTH * OTHER_PITCH
        value += tl.load(below, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(below + OTHER_PITCH, mask=inside, other=0.0).to(tl.float32)
        value = (value * 0.25).to(target.dtype.element_ty).to(tl.float32)
    places = target + rows[:, None] * TARGET_PITCH + channels[None, :]
    writable = there & (channels < TARGET_PITCH)[None, :]
    tl.store(places, found + value, mask=writable)


@triton.jit
def patches(
    x,
    target,
    rows_in_all,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write the patch of each pixel of the output, WIDTH x WIDTH an image, as a row."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, PADDED)
    there = (rows < rows_in_all)[:, None] & (channels < CHANNELS)[None, :]
    SIZE: tl.constexpr = WIDTH * STRIDE
    image, pixel = rows // (WIDTH * WIDTH), rows % (WIDTH * WIDTH)
    for tap in range(KERNEL * KERNEL):
        down = pixel // WIDTH * STRIDE + tap // KERNEL - KERNEL // 2
        right = pixel % WIDTH * STRIDE + tap % KERNEL - KERNEL // 2
        inside = (down >= 0) & (down < SIZE) & (right >= 0) & (right < SIZE)
        source = x + ((image * SIZE + down) * SIZE + right)[:, None] * PITCH + channels[None, :]
        value = tl.load(source, mask=there & inside[:, None], other=0.0)
        places = rows[:, None] * (KERNEL * KERNEL * CHANNELS) + tap * CHANNELS
        tl.store(target + places + channels[None, :], value, mask=there)
