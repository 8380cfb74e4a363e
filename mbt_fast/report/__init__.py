"""What ``mbt-fast profile`` shows: a text table and a self-contained HTML page."""

from mbt_fast.report.html import render_html
from mbt_fast.report.table import format_table, ratio_to_vanilla

__all__ = ["format_table", "ratio_to_vanilla", "render_html"]
