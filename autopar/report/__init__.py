"""A plan as a page that people read: facts -> parts (what to say) -> text (how it looks)."""

from autopar.report.audit import audit_text, print_audit
from autopar.report.page import plan_page
from autopar.report.simulation import print_simulation, simulation_text
from autopar.report.text import page_text, plan_text, print_page, print_plan
from autopar.report.words import sentence

__all__ = [
    "audit_text",
    "page_text",
    "plan_page",
    "plan_text",
    "print_audit",
    "print_page",
    "print_plan",
    "print_simulation",
    "sentence",
    "simulation_text",
]
