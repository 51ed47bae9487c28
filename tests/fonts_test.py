"""Scripts that the installed fonts may or may not have."""

from matplotlib import font_manager

from fewshotseg import fonts


def test_what_no_font_can_draw_is_written_as_its_code(monkeypatch):
    """No boxes: a box says nothing, and two different names would look alike."""
    monkeypatch.setattr(fonts, "EAST_ASIAN", ())
    fonts._fonts.cache_clear()
    fonts._glyphs.cache_clear()
    try:
        assert fonts.drawable("größe µ é 5") == "größe µ é 5"
        assert fonts.drawable("\u75c5a") == "\\u75c5a"
    finally:
        fonts._fonts.cache_clear()
        fonts._glyphs.cache_clear()


def test_an_installed_font_with_the_glyph_is_used():
    """With every font of the machine: drawn if one of them has it, and without a warning."""
    names, opened = fonts._fonts()
    assert names[0] == "DejaVu Sans" and fonts.names() == names and len(opened) == len(names)
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    assert set(names) <= installed
    covered = any(font.get_char_index(ord("\u75c5")) for font in opened)
    assert (fonts.drawable("\u75c5") == "\u75c5") == covered
