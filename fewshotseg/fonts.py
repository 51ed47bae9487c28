"""Text in pictures: names of files and classes may be in any script."""

import functools

from matplotlib import font_manager

EAST_ASIAN = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP",
    "Noto Sans KR", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Source Han Sans SC", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "Droid Sans Fallback", "Unifont",
)  # fmt: skip


def drawable(text: str) -> str:
    """`text`, with what no font here can draw written as its code, not as a box: '\\u75c5'."""
    return "".join(c if _glyphs(c) else c.encode("unicode_escape").decode() for c in str(text))


@functools.cache
def _glyphs(character: str) -> bool:
    return any(font.get_char_index(ord(character)) for font in _fonts()[1])


@functools.cache
def _fonts() -> tuple[list[str], list]:
    """Names of the fonts to draw with, Matplotlib's own first, and the opened fonts."""
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    names = ["DejaVu Sans", *(name for name in EAST_ASIAN if name in installed)]
    found = [font_manager.findfont(name, fallback_to_default=False) for name in names]
    return names, [font_manager.get_font(path) for path in found]


def names() -> list[str]:
    """Families to draw with: Matplotlib's own, then those that are installed of `EAST_ASIAN`."""
    return _fonts()[0]
