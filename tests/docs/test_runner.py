"""The runner of blocks finds what is wrong with a page."""

import pytest

from tests.docs.blocks import BlockError, blocks, run_page, same

FENCE = "```"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*parts):
        page = tmp_path / "page.md"
        page.write_text("\n\n".join(parts) + "\n")
        return [(block.text, printed) for block, printed in run_page(page, {})]

    return run


def fence(language, text, note=""):
    return f"{note}\n{FENCE}{language}\n{text}\n{FENCE}".lstrip("\n")


def test_blocks_share_names_and_what_they_print_is_compared(run):
    ((shown, printed),) = run(
        fence("python", "x = 1"), "Words.", fence("python", "print(x + 1)"), fence("text", "3", "<!-- output -->")
    )
    assert printed == "2\n" and not same(shown, printed) and same("2", printed)


def test_a_setup_is_run_and_a_block_that_is_not_run_is_compiled(run):
    run("<!-- setup\nx = 1\n\ny = 2\n-->", fence("python", "assert y == 2"))
    run(fence("python", "nothing.there", "<!-- not run: no GPU -->"))
    with pytest.raises(BlockError, match=r"page\.md:3: .*never closed"):
        run(fence("python", "f(", "<!-- not run: no GPU -->"))


def test_errors_are_those_that_were_said(run):
    ((_, printed),) = run(
        fence("python", "raise KeyError('k')", "<!-- raises: LookupError -->"), fence("text", "", "<!-- output -->")
    )
    assert printed == "LookupError: 'k'\n"
    with pytest.raises(BlockError, match=r"page\.md:2: KeyError: 'k'"):
        run(fence("python", "raise KeyError('k')"))
    with pytest.raises(BlockError, match="nothing was raised, ValueError was expected"):
        run(fence("python", "1", "<!-- raises: ValueError -->"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("    autopar plan gpt --clutser cpu:8", "clutser"),
        ("    autopar paln gpt", "paln"),
        ("    make dmeo", "no target 'dmeo'"),
        (fence("sh", "python examples/none.py"), "no examples/none.py"),
        (fence("sh", "frobnicate"), "'frobnicate' is no command"),
        (fence("sh", "autopar models nothing"), "exit status 2\nerror: .*nothing"),
        (fence("toml", 'device = "abacus"'), "toml"),
        ("<!-- ouput -->\n\n    2", "says nothing here"),
    ],
)
def test_what_is_wrong_is_found(run, text, said):
    with pytest.raises(Exception, match=f"(?s){said}"):
        run(text)


def test_commands_are_run_where_they_are_shown_as_shell_and_parsed_elsewhere(run, tmp_path):
    plan = "autopar plan mlp --cluster h100:2 \\\n    --mesh 2 --save plan.json"
    run("\n".join("    " + line for line in plan.splitlines()))
    run(fence("sh", plan, "<!-- not run: why -->"))
    assert not (tmp_path / "plan.json").exists()
    ((_, printed),) = run(fence("sh", f"{plan} | head -1"), fence("text", "", "<!-- output -->"))
    assert (tmp_path / "plan.json").exists() and len(printed.splitlines()) == 1


def test_a_comment_belongs_to_the_block_right_after_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        f"<!-- output -->\n\nWords.\n\n{fence('text', '1')}\n\n1. item\n\n   {FENCE}text\n   2\n   {FENCE}\n"
    )
    assert [(b.text, b.note[0]) for b in blocks(page)] == [("1\n", ""), ("2\n", "")]
