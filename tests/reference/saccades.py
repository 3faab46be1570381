"""Events under a moving sensor, pixel by pixel, in unbounded integers. Images are ``[H][W]`` or ``[3][H][W]``."""

from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from math import floor

CORNERS = [(-4, -4), (4, 0), (-4, 4), (-4, -4)]  # row and column, in pixels
POSITIONS_PER_TIMESTEP = 4
PIXEL = 256  # parts of a pixel in which positions are counted
STEP = Fraction(1, 32)  # of a grey value, in which intensities are counted
THRESHOLD = 2048  # parts of the contrast threshold, which is 0.2


def rounded(value: Fraction) -> int:
    """The nearest whole number; of two, the upper one."""
    return floor(value + Fraction(1, 2))


def path(timesteps: int) -> list[tuple[int, int]]:
    """Row and column of the sensor at the start and at every moment after it, in parts of a pixel."""
    moments = POSITIONS_PER_TIMESTEP * timesteps
    positions = []
    for moment in range(moments + 1):
        along = Fraction(3 * moment, moments)
        side = min(floor(along), 2)
        start, end = CORNERS[side], CORNERS[side + 1]
        y, x = (rounded(PIXEL * (a + (along - side) * (b - a))) for a, b in zip(start, end, strict=True))
        positions.append((y, x))
    return positions


def grey_values(image: list[list[list[int]]]) -> list[list[int]]:
    """Of colours, ``[3][H][W]``, the luma of ITU-R BT.601."""
    red, green, blue = image
    return [
        [
            rounded(Fraction(19595 * red[y][x] + 38470 * green[y][x] + 7471 * blue[y][x], 65536))
            for x in range(len(red[y]))
        ]
        for y in range(len(red))
    ]


@cache
def log_level(intensity: int) -> int:
    """log(I + 0.1), less that of the dark, in parts of the contrast threshold; ``intensity`` is I in its steps."""
    with localcontext() as context:
        context.prec = 40
        brightness = Decimal(intensity) / Decimal(int(255 / STEP))
        exact = ((brightness + Decimal("0.1")) / Decimal("0.1")).ln() / Decimal("0.2") * THRESHOLD
        return rounded(Fraction(exact))


def level(grey: list[list[int]], row: int, column: int) -> int:
    """The level at a place between pixels, given in parts of a pixel; outside the image it is dark."""
    total = 0
    for y in range(len(grey)):
        for x in range(len(grey[y])):
            near = max(0, PIXEL - abs(row - PIXEL * y)) * max(0, PIXEL - abs(column - PIXEL * x))
            total += near * grey[y][x]
    return log_level(rounded(total / (STEP * PIXEL * PIXEL)))


def event_counts(image: list, timesteps: int) -> list[list[list[list[int]]]]:
    """Events, ``[T][2][H][W]``: brightening, then darkening."""
    grey = grey_values(image) if isinstance(image[0][0], list) else image
    height, width = len(grey), len(grey[0])
    positions = path(timesteps)
    counts = [[[[0] * width for _ in range(height)] for _ in range(2)] for _ in range(timesteps)]
    for y in range(height):
        for x in range(width):
            levels = [level(grey, PIXEL * y + down, PIXEL * x + right) for down, right in positions]
            reference = levels[0]
            for moment, seen in enumerate(levels[1:]):
                frame = counts[moment // POSITIONS_PER_TIMESTEP]
                while seen - reference >= THRESHOLD:
                    frame[0][y][x] += 1
                    reference += THRESHOLD
                while reference - seen >= THRESHOLD:
                    frame[1][y][x] += 1
                    reference -= THRESHOLD
    return counts
