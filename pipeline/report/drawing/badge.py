"""The badge that shows the verdict, as SVG text. Pure and deterministic."""

from xml.sax.saxutils import escape

NAME = "vllm-poc"
LETTER, PAD, HEIGHT = 6.6, 8, 20  # px; LETTER is an average width at 11 px, as the font's widths are unknown
# White text on these colours has a contrast of at least 4.5.
COLOURS = {"PASS": "#1a7f37", "TRIAL": "#0969da", "NOT PASSED": "#cf222e"}
OTHER = "#9a6700"


def badge(text: str, verdict: str) -> str:
    """Return the badge with this text, coloured by the verdict."""
    left, right = (LETTER * len(part) + 2 * PAD for part in (NAME, text))
    alternative = escape(f"{NAME}: {text}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right:.0f}" height="{HEIGHT}" role="img" aria-label="{alternative}">',
            f"<title>{alternative}</title>",
            f'<clipPath id="round"><rect width="{left + right:.0f}" height="{HEIGHT}" rx="3"/></clipPath>',
            '<g clip-path="url(#round)">',
            f'<rect width="{left:.0f}" height="{HEIGHT}" fill="#444c56"/>',
            f'<rect x="{left:.0f}" width="{right:.0f}" height="{HEIGHT}" fill="{COLOURS.get(verdict, OTHER)}"/>',
            "</g>",
            '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">',
            label(NAME, left / 2, left),
            label(text, left + right / 2, right),
            "</g>",
            "</svg>\n",
        ]
    )


def label(text: str, middle: float, width: float) -> str:
    """Return the text, stretched to fit its part in any font."""
    return f'<text x="{middle:.1f}" y="14" textLength="{width - 2 * PAD:.1f}">{escape(text)}</text>'
