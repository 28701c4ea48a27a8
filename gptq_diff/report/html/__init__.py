"""The report as one HTML file that needs nothing else: no network, no server, no other file."""

from gptq_diff.report.html.page import render_html as render_html
from gptq_diff.report.html.parts import Parts as Parts
from gptq_diff.report.html.parts import read_parts as read_parts
