"""A run as an SVG picture: networks, data flow step by step, validation, learning rates and gates over the run.

Written by hand, without a drawing library. Colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from dlas.config.schema import Config
from dlas.explain.catalogue import in_yaml, number, options_of
from dlas.explain.flow import Flow, Gate, Node, training_flow, validation_flow
from dlas.explain.layout import OUTSIDE, Box, Spacing, arrange
from dlas.explain.rates import Rates, learning_rates

_MARGIN = 24.0
_LINE = 17.0
_FONT = 13.0
_SMALL = 11.5
_PADDING = 11.0
_CARD_WIDTH = 250.0
_PLOT_WIDTH, _PLOT_HEIGHT = 360.0, 96.0
_BAR = 15.0
_MOST_BARS = 12
_COLOURS = 6  # networks beyond these repeat them

_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; fill: #1f2328; }
.small { font-size: 11.5px; } .head { font-size: 19px; font-weight: 600; } .title { font-size: 14.5px; font-weight: 600; }
.strong { font-weight: 600; } .quiet { fill: #59636e; }
.key { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 12px; }
.halo { paint-order: stroke; stroke: #f6f8fa; stroke-width: 6px; stroke-linejoin: round; }
.page { fill: #ffffff; } .band { fill: #f6f8fa; stroke: #d1d9e0; } .box { fill: #ffffff; stroke: #afb8c1; }
.data { fill: #ddf4ff; stroke: #54aeff; } .loss { fill: #ffebe9; stroke: #ff8182; } .metrics { fill: #dafbe1; stroke: #4ac26b; }
.pill { fill: #eef1f4; stroke: #afb8c1; } .arrow { fill: none; stroke: #6e7781; stroke-width: 1.4; } .tip { fill: #6e7781; }
.gate { fill: #9a6700; } .axis { stroke: #afb8c1; fill: none; } .grid { stroke: #d8dee4; stroke-dasharray: 2 3; fill: none; }
.off { fill: #d0d7de; opacity: 0.45; } .on { fill: #6e7781; }
.n0 { fill: #0969da; stroke: #0969da; } .n1 { fill: #bc4c00; stroke: #bc4c00; } .n2 { fill: #8250df; stroke: #8250df; }
.n3 { fill: #1a7f37; stroke: #1a7f37; } .n4 { fill: #bf3989; stroke: #bf3989; } .n5 { fill: #0a7f86; stroke: #0a7f86; }
.line { fill: none; stroke-width: 1.8; } .dashed { stroke-dasharray: 5 3; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .halo { stroke: #151b23; } .quiet { fill: #9198a1; }
.page { fill: #0d1117; } .band { fill: #151b23; stroke: #3d444d; }
.box { fill: #212830; stroke: #656c76; } .data { fill: #10243e; stroke: #1f6feb; } .loss { fill: #3c1618; stroke: #da3633; }
.metrics { fill: #12261e; stroke: #238636; } .pill { fill: #2a313c; stroke: #656c76; } .arrow { stroke: #9198a1; }
.tip { fill: #9198a1; } .gate { fill: #e3b341; } .axis { stroke: #656c76; } .grid { stroke: #3d444d; }
.off { fill: #656c76; opacity: 0.4; } .on { fill: #9198a1; }
.n0 { fill: #4493f8; stroke: #4493f8; } .n1 { fill: #f0883e; stroke: #f0883e; } .n2 { fill: #ab7df8; stroke: #ab7df8; }
.n3 { fill: #3fb950; stroke: #3fb950; } .n4 { fill: #db61a2; stroke: #db61a2; } .n5 { fill: #39c5cf; stroke: #39c5cf; }
.line { fill: none; }
}
"""
# Widths of characters in units of the font's size, on the wide side: no renderer's sans-serif font may overflow a box.
_WIDE, _NARROW, _DIGIT, _USUAL, _CAPITAL = 0.95, 0.36, 0.64, 0.62, 0.75


def text_width(text: str, size: float = _FONT, bold: bool = False, mono: bool = False) -> float:
    """Upper estimate of a line's width in pixels."""
    if mono:
        return 0.63 * size * len(text)
    units = 0.0
    for character in text:
        if character in "mwMW@%—":
            units += _WIDE
        elif character in "iljtfrI.,:;'|!()[] /-":
            units += _NARROW
        elif character.isupper():
            units += _CAPITAL
        else:
            units += _DIGIT if character.isdigit() else _USUAL
    return units * size * (1.08 if bold else 1.0)


@dataclass(frozen=True)
class _Words:
    """One line in a box."""

    text: str
    style: str = ""
    dot: str = ""  # class of a coloured dot in front
    right: str = ""  # text at the right end

    @property
    def width(self) -> float:
        size = _SMALL if "small" in self.style else _FONT
        own = text_width(self.text, size, bold="strong" in self.style, mono="key" in self.style)
        return own + (13 if self.dot else 0) + (text_width(self.right, size) + 12 if self.right else 0)


class _Canvas:
    """Collects elements and how far they reach."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.width = 0.0

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "") -> None:
        anchored = f' text-anchor="{anchor}"' if anchor else ""
        styled = f' class="{style}"' if style else ""
        self.elements.append(f'<text x="{x:.1f}" y="{y:.1f}"{styled}{anchored}>{escape(words)}</text>')
        size = _SMALL if "small" in style else 19.0 if "head" in style else 14.5 if "title" in style else _FONT
        if not anchor:
            self.width = max(self.width, x + text_width(words, size, bold="strong" in style or "title" in style))

    def rect(self, x: float, y: float, width: float, height: float, style: str, radius: float = 7.0) -> None:
        self.elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" class="{style}"/>'
        )
        self.width = max(self.width, x + width)

    def path(self, points: str, style: str, tip: bool = False) -> None:
        marker = ' marker-end="url(#tip)"' if tip else ""
        self.elements.append(f'<path d="{points}" class="{style}"{marker}/>')

    def open(self, name: str, value: str) -> None:
        self.elements.append(f"<g data-{name}={quoteattr(value)}>")

    def close(self) -> None:
        self.elements.append("</g>")


def draw(config: Config) -> str:
    """The picture, as the text of an SVG file."""
    canvas = _Canvas()
    y = _MARGIN + 16
    canvas.text(_MARGIN, y, config.name, "head")
    y = _draw_networks(canvas, config, y + 20)
    for flow, title in ((training_flow(config), "One iteration"), (validation_flow(config), "Validation")):
        if flow is not None:
            canvas.text(_MARGIN, y + 22, title, "title")
            if title == "Validation":
                canvas.text(_MARGIN + text_width(title, 14.5, bold=True) + 14, y + 22, _validation_times(config), "quiet")
            y = _draw_flow(canvas, flow, config, y + 36)
    y = _draw_rates(canvas, config, y)
    width, height = canvas.width + _MARGIN, y + _MARGIN - 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}">',
            f"<title>{escape(f'The run {config.name}')}</title>",
            f"<style>{_STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0,0.8 L8,4 L0,7.2 z" class="tip"/></marker></defs>',
            f'<rect width="{width:.0f}" height="{height:.0f}" class="page"/>',
            *canvas.elements,
            "</svg>",
            "",
        ]
    )


def _validation_times(config: Config) -> str:
    if config.train is None:
        return ""
    return f"every {config.train.val_freq} iterations and at the end" if config.train.val_freq else "at the end"


# ------------------------------------------------------------------------------------------------------------------- networks


def _draw_networks(canvas: _Canvas, config: Config, y: float) -> float:
    cards = []
    for name, section in config.networks.items():
        steps = [step for step, each in config.steps.items() if name in each.trained]
        role = f"trained by {' and '.join(steps)}" if steps else "not trained" if section.trainable else "frozen"
        lines = [_Words(name, "strong"), _Words(section.which_model), _Words(role, "small quiet")]
        defaults = {o.name: o.default for o in options_of(section.REGISTRY.find(section.which_model)) if not o.required}
        changed = [f"{k} {in_yaml(v)}" for k, v in section.options.items() if k not in defaults or defaults[k] != v]
        lines += [_Words(line, "small quiet") for line in _filled(changed, _CARD_WIDTH - 2 * _PADDING - 6)]
        cards.append((name, lines))
    x = _MARGIN
    tallest = max((len(lines) for _, lines in cards), default=0) * _LINE + 2 * _PADDING - 4
    for name, lines in cards:
        width = max([_CARD_WIDTH, *(line.width + 2 * _PADDING + 6 for line in lines)])
        canvas.open("network", name)
        canvas.rect(x, y, width, tallest, "box")
        canvas.rect(x, y, 6, tallest, _colour(name, config), 3)
        _draw_lines(canvas, lines, x + 6 + _PADDING, y + _PADDING, width - 6 - 2 * _PADDING)
        canvas.close()
        x += width + 16
    return y + tallest + 14 if cards else y


def _filled(words: Sequence[str], width: float) -> list[str]:
    lines: list[str] = []
    for word in words:
        joined = f"{lines[-1]}, {word}" if lines else word
        if lines and text_width(joined, _SMALL) <= width:
            lines[-1] = joined
        else:
            lines.append(_cut(word, width))
    return lines


def _cut(text: str, width: float) -> str:
    while text_width(text, _SMALL) > width:
        text = text[:-4] + "..."
    return text


def _colour(network: str, config: Config) -> str:
    names = list(config.networks)
    return f"n{names.index(network) % _COLOURS}" if network in names else "on"


def _draw_lines(canvas: _Canvas, lines: Iterable[_Words], x: float, y: float, width: float) -> None:
    baseline = y + 11
    for line in lines:
        if line.dot:
            canvas.elements.append(f'<circle cx="{x + 4:.1f}" cy="{baseline - 4:.1f}" r="4" class="{line.dot}"/>')
        canvas.text(x + (13 if line.dot else 0), baseline, line.text, line.style)
        if line.right:
            canvas.text(x + width, baseline, line.right, line.style, "end")
        baseline += _LINE


# ----------------------------------------------------------------------------------------------------------------------- flow


def _draw_flow(canvas: _Canvas, flow: Flow, config: Config, top: float) -> float:
    words = {node.id: _node_words(node, config) for node in flow.nodes()}
    boxes, arrows = _boxes(flow, words)
    drawing = arrange(boxes, arrows, Spacing())
    left = _MARGIN
    inner = [box for box in drawing.boxes.values() if box.band != OUTSIDE]
    band_left = left + min(box.x for box in inner) - 16
    heads = [_band_head(band.title, band.gate, band.details) for band in flow.bands]
    band_right = max([left + drawing.width + 16, *(band_left + 16 + _head_width(head) + 16 for head in heads)])
    for upper, lower in drawing.bands:
        canvas.rect(band_left, top + upper, band_right - band_left, lower - upper, "band", 10)
    for points in drawing.arrows.values():
        canvas.path(_curve([(x + left, y + top) for x, y in points]), "arrow", tip=True)
    for band, head, (upper, _) in zip(flow.bands, heads, drawing.bands, strict=True):  # over arrows from band to band
        canvas.open("band", band.name)
        x = band_left + 16
        canvas.text(x, top + upper + 21, head[0], "strong halo")
        if head[1]:
            canvas.text(x + text_width(head[0], bold=True) + 14, top + upper + 21, head[1], "small gate halo")
        canvas.text(x, top + upper + 39, head[2], "small quiet halo")
        canvas.close()
    for node in flow.nodes():
        box = drawing.boxes[node.id]
        canvas.open("node", node.id)
        canvas.rect(left + box.x, top + box.y, box.width, box.height, "box" if node.kind == "injector" else node.kind)
        _draw_lines(canvas, words[node.id], left + box.x + _PADDING, top + box.y + _PADDING - 2, box.width - 2 * _PADDING)
        canvas.close()
        for key in node.writes:
            pill = drawing.boxes[f"{node.id}:{key}"]
            canvas.open("key", key)
            canvas.rect(left + pill.x, top + pill.y, pill.width, pill.height, "pill", pill.height / 2)
            canvas.text(left + pill.x + pill.width / 2, top + pill.middle + 4, key, "key", "middle")
            canvas.close()
    return top + drawing.height + 14


def _band_head(title: str, gate: Gate, details: str) -> tuple[str, str, str]:
    return title, str(gate), details


def _head_width(head: tuple[str, str, str]) -> float:
    return max(text_width(head[0], bold=True) + 14 + text_width(head[1], _SMALL), text_width(head[2], _SMALL))


def _node_words(node: Node, config: Config) -> list[_Words]:
    weight = f"weight {number(node.weight)}" if node.weight is not None else ""
    lines = [_Words(node.name, "strong", right="")]
    if weight:
        lines.append(_Words(node.type, "small", right=weight))
    elif node.kind == "metrics":
        lines += [_Words(line, "small") for line in _filled(node.type.split(", "), 190)]
    else:
        lines.append(_Words(node.type, "small"))
    lines += [_Words(network, "small", dot=_colour(network, config)) for network in node.networks]
    lines += [_Words(note, "small gate") for note in node.notes]
    if node.gate:
        lines.append(_Words(str(node.gate), "small gate"))
    return lines


def _boxes(flow: Flow, words: dict[str, list[_Words]]) -> tuple[list[Box], list[tuple[str, str]]]:
    layers = _layers(flow)
    boxes, arrows = [], []
    bands = {node.id: position for position, band in enumerate(flow.bands) for node in band.nodes}
    for node in flow.nodes():
        lines = words[node.id]
        width = max(line.width for line in lines) + 2 * _PADDING
        band = bands.get(node.id, OUTSIDE)
        boxes.append(Box(node.id, layers[node.id], band, width, len(lines) * _LINE + 2 * _PADDING - 6))
        for key in node.writes:
            pill = f"{node.id}:{key}"
            boxes.append(Box(pill, layers[node.id] + 1, band, text_width(key, 12, mono=True) + 20, 22))
            arrows.append((node.id, pill))
        arrows += [(f"{flow.writer(key, node).id}:{key}", node.id) for key in node.reads]
    return boxes, arrows


def _layers(flow: Flow) -> dict[str, int]:
    """Columns: the data, its keys, then each node right of what it reads. Losses and metrics share the last column."""
    layers = {flow.data.id: 0}
    nodes = [node for node in flow.nodes() if node is not flow.data]
    for node in nodes:
        layers[node.id] = max([2, *(layers[flow.writer(key, node).id] + 2 for key in node.reads)])
    last = max((layers[node.id] for node in nodes), default=0)
    layers.update({node.id: last for node in nodes if node.kind in ("loss", "metrics")})
    return layers


def _curve(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    parts = [f"M{x:.1f},{y:.1f}"]
    for index, (next_x, next_y) in enumerate(rest):
        if index % 2 == 0:  # straight through a column
            parts.append(f"L{next_x:.1f},{next_y:.1f}")
        else:
            middle = (x + next_x) / 2
            parts.append(f"C{middle:.1f},{y:.1f} {middle:.1f},{next_y:.1f} {next_x:.1f},{next_y:.1f}")
        x, y = next_x, next_y
    return " ".join(parts)


# ---------------------------------------------------------------------------------------------------------------------- rates


def _draw_rates(canvas: _Canvas, config: Config, top: float) -> float:
    rates = learning_rates(config)
    if not rates or config.train is None:
        return top
    canvas.text(_MARGIN, top + 22, "Learning rates and gates over the run", "title")
    top += 40
    x, row_bottom = _MARGIN, top
    widest = max(canvas.width, _MARGIN + 2 * (_PLOT_WIDTH + 100))
    for step in config.steps:
        own = [each for each in rates if each.step == step]
        bars = _bars(config, step)
        names = [name for name, _ in bars]
        left = max([58.0, *(text_width(name, _SMALL) + 12 for name in names)])
        if x > _MARGIN and x + left + _PLOT_WIDTH > widest:
            x, top = _MARGIN, row_bottom
        canvas.open("rates", step)
        bottom = _draw_plot(canvas, x, top, left, own, bars, config)
        canvas.close()
        row_bottom = max(row_bottom, bottom)
        x += left + _PLOT_WIDTH + 36
    return row_bottom


def _bars(config: Config, step: str) -> list[tuple[str, Gate]]:
    """The step's losses and injectors with a gate, those of the step itself first."""
    section = config.steps[step]
    whole = Gate(section.after, section.before, section.every)
    bars = [("step", whole)] if whole else []
    for name, loss in section.losses.items():
        bars.append((name, _both(whole, Gate(loss.after, loss.before, loss.every))))
    for name, injector in section.injectors.items():
        if gate := Gate(injector.after, injector.before, injector.every):  # injectors run in every iteration of the step
            bars.append((name, _both(Gate(section.after, section.before), gate)))
    return bars[:_MOST_BARS]


def _both(outer: Gate, inner: Gate) -> Gate:
    """Open where both are open."""
    ends = [end for end in (outer.before, inner.before) if end is not None]
    return Gate(max(outer.after, inner.after), min(ends, default=None), math.lcm(outer.every, inner.every))


def _draw_plot(
    canvas: _Canvas, x: float, y: float, left: float, rates: Sequence[Rates], bars: list[tuple[str, Gate]], config: Config
) -> float:
    assert config.train is not None
    step, length = rates[0].step, config.train.niter
    known = [each for each in rates if not each.unknown]
    canvas.text(x, y + 12, step, "strong")
    groups = ", ".join(each.group for each in known if each.group)
    subtitle = rates[0].schedule + (f"; dashed: {groups}" if groups else "")
    canvas.text(x + text_width(step, bold=True) + 10, y + 12, _cut(subtitle, left + _PLOT_WIDTH - 60), "small quiet")
    plot_x, plot_y = x + left, y + 26
    bottom = plot_y + _PLOT_HEIGHT
    section = config.steps[step]
    _shade_closed(canvas, Gate(section.after, section.before), plot_x, plot_y, length)
    highest = max((rate for each in known for _, rate in each.samples(400)), default=0.0)
    canvas.path(f"M{plot_x:.1f},{plot_y:.1f} V{bottom:.1f} H{plot_x + _PLOT_WIDTH:.1f}", "axis")
    if highest > 0:
        canvas.path(f"M{plot_x:.1f},{plot_y + 6:.1f} h{_PLOT_WIDTH:.1f}", "grid")
        canvas.text(plot_x - 6, plot_y + 10, number(float(f"{highest:.3g}")), "small quiet", "end")
        canvas.text(plot_x - 6, bottom + 3, "0", "small quiet", "end")
        colour = _colour(section.trained[0], config) if section.trained else "on"
        for each in known:
            style = f"{colour} line dashed" if each.group else f"{colour} line"
            canvas.path(_line(each, plot_x, plot_y + 6, _PLOT_HEIGHT - 6, highest), style)
    for each in rates:
        if each.unknown and not each.group:
            canvas.text(plot_x + 8, plot_y + 24, _cut(each.unknown, _PLOT_WIDTH - 16), "small quiet")
    canvas.text(plot_x, bottom + 15, "0", "small quiet")
    canvas.text(plot_x + _PLOT_WIDTH, bottom + 15, f"{length} iterations", "small quiet", "end")
    bar_y = bottom + 24
    for name, gate in bars:
        canvas.text(plot_x - 6, bar_y + 9, name, "small", "end")
        canvas.rect(plot_x, bar_y, _PLOT_WIDTH, 10, "off", 3)
        start, end = _span(gate, length)
        if end > start:
            share = 1.0 if gate.every == 1 else 0.5  # half as high: not in every iteration
            canvas.rect(plot_x + start, bar_y + 5 * (1 - share), end - start, 10 * share, "on", 3)
        bar_y += _BAR
    return bar_y + 18


def _span(gate: Gate, length: int) -> tuple[float, float]:
    start = min(1.0, gate.after / length) * _PLOT_WIDTH
    end = _PLOT_WIDTH if gate.before is None else min(1.0, gate.before / length) * _PLOT_WIDTH
    return start, end


def _shade_closed(canvas: _Canvas, gate: Gate, x: float, y: float, length: int) -> None:
    start, end = _span(gate, length)
    if start > 0:
        canvas.rect(x, y, start, _PLOT_HEIGHT, "off", 0)
    if end < _PLOT_WIDTH:
        canvas.rect(x + end, y, _PLOT_WIDTH - end, _PLOT_HEIGHT, "off", 0)


def _line(rates: Rates, x: float, y: float, height: float, highest: float) -> str:
    """A polyline; a rate that is constant in pieces is drawn with upright steps."""
    scale = _PLOT_WIDTH / max(1, rates.length)

    def place(s: float, rate: float) -> str:
        return f"{x + s * scale:.1f},{y + height * (1 - rate / highest):.1f}"

    pieces = rates.pieces()
    if pieces is None:
        points = [place(s, rate) for s, rate in rates.samples(int(_PLOT_WIDTH))]
    else:
        ends = [s for s, _ in pieces[1:]] + [rates.length]
        points = [place(s, rate) for (begin, rate), end in zip(pieces, ends, strict=True) for s in (begin, end)]
    return "M" + " L".join(points)
