"""A report page: complete in itself, well formed, and safe with any text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import torch
from matplotlib.figure import Figure

from fcmae.report import page, plots
from fcmae.report.page import FIRST, Column

VOID = {"meta", "img", "br", "hr", "link", "input"}
ADDRESSES = re.compile(r"""(?:src|href|xlink:href|action|data|poster|srcset)\s*=\s*["']?+(?!data:|#)""")


class Reader(HTMLParser):
    """Checks that tags nest, and keeps what was found."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(values)
        self.ids += [value for name, value in attrs if name == "id" and value]
        for value in values.values():
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")
        self.references += [value[1:] for name, value in attrs if name.endswith("href") and value]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> tuple[str, Reader]:
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return text, reader


def write(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "report.html"
    pictures = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    arms = [plots.Arm(name=name, values=values) for name, values in (("a", (0.8, 0.9)), ("b", (0.7, 0.75)))]
    page.write_page(
        path,
        title="A <title> & more",
        subtitle="x < y",
        blocks=[
            page.notice("A notice", tone="good"),
            page.tiles([("name", "value", "remark")]),
            page.section(
                "Plots",
                page.columns(
                    page.figure(
                        plots.loss_curve([1, 2, 3], [1.0, 0.5, 0.25]), alt='A "falling" loss', caption="Loss"
                    ),
                    page.figure(plots.paired_accuracies(*arms), alt="Accuracies", caption="Accuracy"),
                ),
                page.figure(plots.shares(["time"], [0.4]), alt="Shares", caption="Share"),
                page.gallery(
                    [("original", pictures), ("visible", pictures)], names=["x", "y"], caption="Pictures"
                ),
                page.table(
                    [Column(title="name"), Column(title="n", format=".2f")], [["<b>", 1.5]], caption="Numbers"
                ),
                page.details("config", "a: <script>alert(1)</script>"),
            ),
        ],
    )
    return path


def test_the_page_needs_nothing_outside(tmp_path: Path) -> None:
    text, _ = read(write(tmp_path))
    assert not re.search(r"https?:|//[a-z]|@import|<link|<iframe", text)
    assert ADDRESSES.findall(text) == []


def test_the_page_is_well_formed_and_ids_are_unique(tmp_path: Path) -> None:
    _, reader = read(write(tmp_path))
    assert len(reader.ids) == len(set(reader.ids)) > 0
    assert reader.references and set(reader.references) <= set(reader.ids)


def test_every_picture_and_plot_says_what_it_shows(tmp_path: Path) -> None:
    text, reader = read(write(tmp_path))
    assert [image["alt"] for image in reader.images] == [
        "x, original",
        "x, visible",
        "y, original",
        "y, visible",
    ]
    assert text.count("<svg") == 3
    assert len(re.findall(r'<svg role="img" aria-label="[^"]+"', text)) == 3


def test_texts_are_escaped(tmp_path: Path) -> None:
    text, reader = read(write(tmp_path))
    assert "alert(1)</script>" not in text
    assert "<script>alert(1)</script>" in reader.text
    assert "A <title> & more" in reader.text


def test_plots_take_the_colours_of_the_page(tmp_path: Path) -> None:
    text, _ = read(write(tmp_path))
    assert "var(--first)" in text and "var(--muted)" in text
    for colour in (page.INK, page.MUTED, page.GRID, page.FIRST, page.SECOND):
        assert colour not in text


def test_the_same_plot_gives_the_same_bytes() -> None:
    def draw() -> str:
        figure = Figure()
        figure.subplots().plot([0, 1], [1, 0], color=FIRST)
        return page.figure(figure, alt="a", caption="b")

    assert draw() == draw()


def test_numbers_sort_by_value_not_by_their_text() -> None:
    html = page.table([Column(title="n", format=".1f")], [[9.97], [10.0], [None]], caption="c")
    assert '<td class="number" data-value="9.97">10.0</td>' in html
    assert '<th scope="col" class="number">' in html
    assert "<td>-</td>" in html
