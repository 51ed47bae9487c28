"""What phantoms look like: a canvas of random shapes and textures, and two scenes drawn on it.

Coordinates run from -1 to 1 across the image (x to the right, y down). Random fields live on grids
whose size does not depend on the number of pixels, and random numbers are drawn in a fixed order,
so a scene looks alike at every resolution. Colours and brightness are floats, 0 black and 1 white.
"""

import dataclasses

import numpy as np
from scipy import ndimage

# What a pigment absorbs of red, green and blue: brown, red, blue-grey, dark brown.
_PIGMENTS = np.array([[0.35, 0.52, 0.62], [0.12, 0.48, 0.46], [0.58, 0.52, 0.40], [0.5, 0.62, 0.7]])


@dataclasses.dataclass
class Canvas:
    """Pixel coordinates and the random things that are drawn on them."""

    rng: np.random.Generator
    size: int

    def __post_init__(self):
        self.pixel = 2.0 / self.size
        line = (np.arange(self.size) + 0.5) * self.pixel - 1.0
        self.y, self.x = np.meshgrid(line, line, indexing="ij")

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def between(self, low: float, high: float, size=None):
        return self.rng.uniform(low, high, size)

    def field(self, down: int, across: int | None = None) -> np.ndarray:
        """Smooth noise of about unit variance: a cubic B-spline over `down x across` cells."""
        across = across or down
        grid = self.rng.standard_normal((down + 3, across + 3))
        noise = _spline_matrix(self.size, down) @ grid @ _spline_matrix(self.size, across).T
        return noise / 0.48

    def cover(self, distance: np.ndarray, softness: float = 0.0) -> np.ndarray:
        """Share of a pixel that is inside (distance > 0), over an edge of the given softness."""
        return np.clip(0.5 + distance / (self.pixel + softness), 0.0, 1.0)

    def disc(self, x: float, y: float, radius: float, flatness: float = 1.0, angle: float = 0.0):
        """Distance from the edge of an ellipse, positive inside; `[S, S]`."""
        u = (self.x - x) * np.cos(angle) + (self.y - y) * np.sin(angle)
        v = (self.y - y) * np.cos(angle) - (self.x - x) * np.sin(angle)
        return radius - np.hypot(u, v / flatness)

    def outline(self, x: float, y: float, radius: float, roughness: float, flatness: float):
        """Distance (first order) from a random Fourier contour, positive inside; `[S, S]`."""
        angle = self.between(0.0, np.pi)
        u = (self.x - x) * np.cos(angle) + (self.y - y) * np.sin(angle)
        v = ((self.y - y) * np.cos(angle) - (self.x - x) * np.sin(angle)) / flatness
        theta = np.arctan2(v, u)
        order = np.arange(2, 9)
        amplitude = roughness * self.rng.standard_normal(order.size) / order**1.1
        phase = self.between(0.0, 2.0 * np.pi, order.size)
        wave = np.tensordot(
            amplitude, np.cos(order[:, None, None] * theta + phase[:, None, None]), 1
        )
        return radius * np.clip(1.0 + wave, 0.35, 1.8) - np.hypot(u, v)

    def curve(self, width: float) -> np.ndarray:
        """Coverage of one bent line across the image, such as a hair; `[S, S]`."""
        angle, offset = self.between(0.0, np.pi), self.between(-0.9, 0.9)
        bend, wiggle, phase = self.between(-0.35, 0.35), self.between(0, 0.05), self.between(0, 6)
        start, length = self.between(-1.4, 0.4), self.between(0.7, 2.4)
        u = self.x * np.cos(angle) + self.y * np.sin(angle)
        v = self.y * np.cos(angle) - self.x * np.sin(angle)
        distance = v - offset - bend * u**2 - wiggle * np.sin(4.0 * u + phase)
        distance = np.abs(distance) / np.hypot(1.0, 2.0 * bend * u)
        # Thinner than a pixel means fainter, not wider: coverage times width over pixel.
        strength = min(1.0, width / self.pixel)
        line = strength * self.cover(width / 2.0 - distance + max(0.0, self.pixel - width) / 2.0)
        return line * ((u > start) & (u < start + length))


def _spline_matrix(size: int, cells: int) -> np.ndarray:
    """Weights `[size, cells + 3]` of a uniform cubic B-spline at pixel centres."""
    at = (np.arange(size) + 0.5) * cells / size
    first = np.minimum(at.astype(int), cells - 1)
    t = (at - first)[:, None]
    weights = np.concatenate(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    matrix = np.zeros((size, cells + 3))
    np.put_along_axis(matrix, first[:, None] + np.arange(4), weights / 6.0, axis=1)
    return matrix


def _lesions(canvas: Canvas, roughness: tuple[float, float]) -> list[np.ndarray]:
    """Distance maps of the lesions of one case: rarely none, mostly one, sometimes up to three."""
    count = canvas.rng.choice(4, p=(0.01, 0.79, 0.14, 0.06))
    found = []
    for _ in range(count):
        largest = 0.62 if count == 1 else 0.4
        radius = 0.27 * (largest / 0.27) ** canvas.between(0.0, 1.0)
        x, y = canvas.between(-0.85 + radius * 0.8, 0.85 - radius * 0.8, 2)
        flatness = canvas.between(0.6, 1.0)
        outline = canvas.outline(x, y, radius, canvas.between(*roughness), flatness)
        found.append(outline + 0.04 * radius / 0.3 * canvas.field(9))
    return found


def draw_dermoscopy(canvas: Canvas, shifted: bool) -> tuple[np.ndarray, np.ndarray]:
    """RGB image `[S, S, 3]`, about 0..1, and its mask."""
    blend = canvas.between(0.0, 1.0)
    skin = np.array([0.90, 0.74, 0.66]) * (1 - blend) + np.array([0.66, 0.46, 0.36]) * blend
    skin = skin * canvas.between(0.85, 1.1) * (1.0 + 0.05 * canvas.rng.standard_normal(3))
    relief = 0.035 * canvas.field(4) + 0.02 * canvas.field(12) + 0.025 * canvas.field(40)
    image = skin * (1.0 + canvas.between(0.5, 1.5) * relief)[..., None]
    image = _skin_distractors(canvas, image)
    mask = np.zeros((canvas.size, canvas.size), bool)
    pigment = _pigment(canvas)
    for outline in _lesions(canvas, (0.12, 0.5)):
        mask |= outline > 0
        image = _paint_lesion(canvas, image, outline, pigment)
    image = _optics_distractors(canvas, image)
    lean, turn = canvas.between(0.0, 0.3), canvas.between(0.0, 2 * np.pi)
    light = 1.0 + lean * (np.cos(turn) * canvas.x + np.sin(turn) * canvas.y)
    vignette = canvas.between(0.0, 0.3) * np.clip(np.hypot(canvas.x, canvas.y) - 0.5, 0, None)
    image = image * (light - vignette)[..., None]
    if canvas.chance(0.15):  # the black rim of the contact plate
        rim = canvas.cover(canvas.disc(*canvas.between(-0.1, 0.1, 2), canvas.between(1.05, 1.25)))
        image = image * rim[..., None] + 0.04 * (1 - rim[..., None])
    if shifted:
        cast = np.array([0.82, 0.98, 1.12]) + canvas.between(-0.06, 0.06, 3)
        blur = canvas.between(0.015, 0.03) / canvas.pixel
        image = ndimage.gaussian_filter(np.clip(image, 0, 1), (blur, blur, 0))
        image = canvas.between(0.75, 0.9) * cast * image**0.85
    noise = canvas.between(0.03, 0.06) if shifted else canvas.between(0.005, 0.02)
    return image + noise * canvas.rng.standard_normal(image.shape), mask


def _pigment(canvas: Canvas) -> np.ndarray:
    """What the lesion does to skin colour: a factor per channel, from barely visible to black."""
    kind = _PIGMENTS[canvas.rng.choice(4, p=(0.45, 0.2, 0.1, 0.25))]
    pale = canvas.chance(0.12)
    strength = 0.5 * ((0.7 if pale else 1.3) / 0.5) ** canvas.between(0.0, 1.0)
    factor = 1.0 - np.clip(strength * kind * (1 + 0.1 * canvas.rng.standard_normal(3)), 0, 0.92)
    return 2.0 - factor if pale else factor


def _paint_lesion(canvas, image, outline, pigment):
    """Lays one lesion over the skin: soft edge, blotches, network, globules, regression."""
    edge = canvas.cover(outline, canvas.between(0.0, 0.12))
    density = 1.0 + 0.3 * canvas.field(5) + 0.15 * canvas.field(14)
    network = np.abs(canvas.field(18)) < canvas.between(0.25, 0.45)
    density = density + canvas.between(0.1, 0.5) * (network - 0.4)
    if canvas.chance(0.4):
        density = density + 0.8 * canvas.cover(canvas.field(16) - 1.2, 0.4)
    if canvas.chance(0.3):  # regression: a part that looks like skin again
        density = density * (1.0 - 0.6 * canvas.cover(canvas.field(3) - 0.5, 0.8))
    density = np.clip(density, 0.35, 1.9)[..., None]
    return image * (1.0 + edge[..., None] * ((pigment - 1.0) * density))


def _skin_distractors(canvas, image):
    """Under the lesion: freckles, flushes of red, smooth stains; none of them counts."""
    for _ in range(canvas.rng.integers(0, 12)):
        x, y = canvas.between(-1, 1, 2)
        spot = canvas.cover(canvas.disc(x, y, canvas.between(0.02, 0.07), 0.8), 0.05)
        image = image * (1 - canvas.between(0.1, 0.5) * spot[..., None] * [0.5, 0.8, 1.0])
    if canvas.chance(0.35):  # flush: large, no edge, no texture
        x, y = canvas.between(-0.8, 0.8, 2)
        flush = np.exp(-(np.hypot(canvas.x - x, canvas.y - y) ** 2) / canvas.between(0.05, 0.25))
        image = image * (1 - canvas.between(0.15, 0.45) * flush[..., None] * [0.25, 1.0, 0.9])
    for _ in range(canvas.rng.choice(3, p=(0.35, 0.45, 0.2))):
        # A stain has the colours and the size of a lesion, but a smooth outline and no texture.
        x, y = canvas.between(-1, 1, 2)
        flatness, angle = canvas.between(0.6, 1.0), canvas.between(0.0, np.pi)
        disc = canvas.disc(x, y, canvas.between(0.12, 0.45), flatness, angle)
        stain = canvas.cover(disc, canvas.between(0.0, 0.1))[..., None]
        tint = canvas.between(0.3, 1.1) * _PIGMENTS[canvas.rng.integers(4)]
        tint = -0.6 * tint if canvas.chance(0.12) else tint
        image = image * (1 - stain * tint)
    return image


def _optics_distractors(canvas, image):
    """Over the lesion: hair, ruler ticks, gel bubbles."""
    if canvas.chance(0.5):
        colour = np.array([0.16, 0.11, 0.08]) * canvas.between(0.5, 2.5)
        for _ in range(canvas.rng.integers(1, 14)):
            hair = canvas.between(0.6, 0.95) * canvas.curve(canvas.between(0.012, 0.035))[..., None]
            image = image * (1 - hair) + colour * hair
    if canvas.chance(0.25):
        step, offset = canvas.between(0.08, 0.16), canvas.between(0.72, 0.92)
        along, across = (canvas.x, canvas.y) if canvas.chance(0.5) else (canvas.y, canvas.x)
        across = across * canvas.rng.choice((-1, 1))
        number = np.round(along / step)
        length = np.where(number % 5 == 0, 0.16, 0.09)
        tick = canvas.cover(0.012 - np.abs(along - number * step))
        tick = (tick * ((across > offset - length) & (across < offset)))[..., None]
        image = image * (1 - 0.8 * tick) + 0.08 * tick
    if canvas.chance(0.35):
        for _ in range(canvas.rng.integers(1, 7)):
            x, y = canvas.between(-1, 1, 2)
            radius = canvas.between(0.03, 0.16)
            disc = canvas.disc(x, y, radius)
            ring = canvas.cover(0.014 - np.abs(disc), 0.02) + 0.15 * canvas.cover(disc)
            glint = canvas.cover(
                canvas.disc(x - 0.4 * radius, y - 0.4 * radius, 0.2 * radius), 0.02
            )
            image = image + (canvas.between(0.08, 0.25) * ring + 0.4 * glint)[..., None]
    return image


def draw_ultrasound(canvas: Canvas, shifted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Grey image `[S, S, 1]`, about 0..1, and its mask `[S, S]`, bool."""
    echo, shade = _tissue(canvas)
    echo, shade = _cysts(canvas, echo, shade)
    mask = np.zeros((canvas.size, canvas.size), bool)
    contrast = -canvas.between(0.21, 0.38)
    if canvas.chance(0.08):
        contrast = canvas.between(0.18, 0.26)  # brighter than its surroundings
    for outline in _lesions(canvas, (0.15, 0.55)):
        mask |= outline > 0
        edge = canvas.cover(outline, canvas.between(0.01, 0.08))
        inner = 1.0 + 0.2 * canvas.field(6) + 0.2 * canvas.field(14)
        rim = np.exp(-((outline - 0.03) ** 2) / 0.001) * canvas.between(0.0, 0.12)
        around = echo * (1 - 0.6 * edge) + 0.6 * edge * echo[mask].mean() if mask.any() else echo
        echo = around + edge * contrast * inner + rim * (1 - edge)
        shade = shade - _below(canvas, outline) * canvas.between(-0.06, 0.16)
    for _ in range(canvas.rng.integers(0, 3)):  # shadows of poor contact, from the top down
        centre, width = canvas.between(-1, 1), canvas.between(0.04, 0.22)
        lean = canvas.between(-0.2, 0.2)
        band = np.exp(-(((canvas.x - centre - lean * canvas.y) / width) ** 2))
        shade = shade - canvas.between(0.08, 0.28) * band * np.clip(canvas.y + 1.0, 0, 0.6) / 0.6
    grain = canvas.between(0.55, 0.75) if shifted else 1.0
    down, across = int(56 * grain), int(36 * grain)
    rayleigh = np.hypot(canvas.field(down, across), canvas.field(down, across))
    speckle = np.clip(np.log(rayleigh + 0.05), -2.0, 1.2) + 0.06
    image = echo + shade + canvas.between(0.07, 0.11) * speckle
    image = image + canvas.between(-0.12, 0.06) * canvas.y + canvas.between(-0.06, 0.06)
    if shifted:
        depth = canvas.between(0.01, 0.025) / canvas.pixel
        image = ndimage.gaussian_filter(image, (0.5 * depth, depth))
        image = 1.35 * np.clip(image - 0.04, 0, 1) ** 1.25
    noise = canvas.between(0.03, 0.06) if shifted else 0.012
    return (image + noise * canvas.rng.standard_normal(image.shape))[..., None], mask


def _tissue(canvas):
    """Skin, fat, gland, muscle and chest wall: echo level and shading, each `[S, S]`."""
    relief = 0.05 * canvas.field(1, 3) + 0.02 * canvas.field(1, 8)
    depth = canvas.y + relief
    borders = np.array([-0.9, -0.45, 0.45, 0.75]) + canvas.between(-1, 1, 4) * [0.03, 0.2, 0.2, 0.1]
    levels = np.array([0.62, 0.34, 0.48, 0.38, 0.26])
    levels = levels + 0.05 * canvas.rng.standard_normal(5)
    echo = np.full(canvas.x.shape, levels[0])
    for border, below, above in zip(borders, levels[1:], levels[:-1], strict=True):
        here = depth - border + 0.05 * canvas.field(4, 6)
        echo = echo + canvas.cover(here, 0.05) * (below - above)
        echo = echo + canvas.between(0.0, 0.22) * np.exp(-((here / 0.03) ** 2))
    # Septa: bright, mostly level lines that leave darker lobules of fat between them.
    septa = np.exp(-((canvas.field(9, 4) / 0.22) ** 2))
    echo = echo + canvas.between(0.04, 0.14) * septa + 0.05 * canvas.field(5, 3)
    fibres = np.sin(26.0 * depth + canvas.field(3)) * canvas.cover(depth - borders[2], 0.1)
    return echo + 0.05 * fibres, np.zeros_like(echo)


def _cysts(canvas, echo, shade):
    """Look-alikes that do not count: black, smooth cysts with bright tails; lobules of fat."""
    for _ in range(canvas.rng.choice(4, p=(0.4, 0.36, 0.16, 0.08))):
        x, y = canvas.between(-0.9, 0.9), canvas.between(-0.6, 0.7)
        radius = canvas.between(0.08, 0.27)
        disc = canvas.disc(x, y, radius, canvas.between(0.6, 1.0), canvas.between(-0.3, 0.3))
        edge = canvas.cover(disc, 0.01)
        echo = echo * (1 - edge) + edge * canvas.between(0.0, 0.1)
        shade = shade + canvas.between(0.08, 0.18) * _below(canvas, disc)
    for _ in range(canvas.rng.integers(0, 3)):
        x, y = canvas.between(-1, 1), canvas.between(-0.7, 0.3)
        disc = canvas.disc(x, y, canvas.between(0.2, 0.45), canvas.between(0.25, 0.45))
        rim = np.exp(-((disc / 0.02) ** 2))
        echo = echo - canvas.between(0.06, 0.2) * canvas.cover(disc, 0.04) + 0.1 * rim
    return echo, shade


def _below(canvas, outline):
    """What lies deeper than a shape, fading out at its sides: 0..1, `[S, S]`."""
    inside = canvas.cover(outline)
    passed = np.clip(np.cumsum(inside, axis=0) * canvas.pixel / 0.2, 0, 1)
    return ndimage.gaussian_filter1d(passed * (1 - inside), 0.03 / canvas.pixel, axis=1)
