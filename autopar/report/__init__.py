"""A plan as a page that people read: facts -> parts (what to say) -> text or HTML (how it looks)."""

from autopar.report.audit import audit_text, print_audit
from autopar.report.diff import PlanDiff, diff, diff_text, print_diff
from autopar.report.html import html_text, write_html
from autopar.report.page import plan_page
from autopar.report.simulation import print_simulation, simulation_text
from autopar.report.specs import partition_specs
from autopar.report.stage_graph import GRAPHS, stage_graph
from autopar.report.text import page_text, plan_text, print_page, print_plan
from autopar.report.words import sentence

__all__ = [
    "GRAPHS",
    "PlanDiff",
    "audit_text",
    "diff",
    "diff_text",
    "html_text",
    "page_text",
    "partition_specs",
    "plan_page",
    "plan_text",
    "print_audit",
    "print_diff",
    "print_page",
    "print_plan",
    "print_simulation",
    "sentence",
    "simulation_text",
    "stage_graph",
    "write_html",
]
