from autopar.lower import Audit, AuditRow, Memory
from autopar.report import audit_text

ROWS = (AuditRow("all-gather", 3, 300, 3, 300), AuditRow("all-reduce", 1234, 4096, 1234, 4096))


def audit(rows=ROWS, planned=1024, compiled=1000):
    return Audit(rows, planned, compiled, Memory(compiled, 0, 0, 0, 0))


def test_agreement():
    text = audit_text(audit())
    assert "The compiled program runs as planned." in text
    assert "1,234" in text and "NO" not in text
    assert "predicted 1 KiB, XLA's own figure 1000 B: 2.4% over" in text
    assert max(map(len, text.splitlines())) <= 80


def test_disagreement_is_loud():
    text = audit_text(audit((*ROWS, AuditRow("all-to-all", 0, 0, 2, 64)), planned=900))
    assert "does NOT run as planned" in text
    assert next(line for line in text.splitlines() if "all-to-all" in line).endswith("NO")
    assert "10.0% UNDER" in text


def test_nothing_to_compare():
    assert "none planned, none compiled" in audit_text(audit(()))
