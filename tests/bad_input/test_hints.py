"""Hints and questions that name nothing, make no sense, or contradict each other."""

import pytest

import autopar
from autopar.models import get
from tests.bad_input.steps import planned, refused


def hinted(*hints, cluster="cpu:8", **more):
    return planned(cluster=cluster, options=autopar.Options(**({"mesh": (8,)} | more), hints=hints))


def mlp(*hints, **more):
    recipe = get("mlp")
    options = autopar.Options(**({"microbatches": 4, "max_stages": 2} | more), hints=hints, hint_costs=False)
    return autopar.plan(recipe.step, *recipe.abstract(), cluster="cpu:4", options=options, donate_argnums=0)


@pytest.mark.parametrize(
    "hint, words",
    [
        ("w", ("hint 'w' is not a pattern and what to do there", "'wte: whole'")),
        (": whole", ("is not a pattern",)),
        ("w: sideways", ("'sideways' is not a layout", "S0 splits dim 0", "'rows over x'")),
        ("w: forbid pipeline", ("no parallelism 'pipeline'", "Known: data, expert, tensor, zero")),
        ("w: require tenser", ("no parallelism 'tenser'", "did you mean 'tensor'")),
        ("w: mesh 2by4", ("'2by4' is not a mesh shape", "such as 2x4")),
        ("w: mesh 0x4", ("'0x4' is not a mesh shape",)),
    ],
)
def test_hints_that_make_no_sense(hint, words):
    with refused(autopar.OptionError, *words):
        autopar.Options(hints=[hint])


@pytest.mark.parametrize("kind", ["S0", "forbid tensor", "require zero", "stage"])
def test_a_pattern_that_matches_nothing_names_the_nearest(kind):
    with refused(
        autopar.OptionError,
        "hint 'stat.w' matches no argument",
        "did you mean .*'state.w'",
        "Known: state.v, state.w, x, y",
    ):
        hinted(f"stat.w: {kind}")
    recipe = get("gpt")
    with refused(
        autopar.OptionError, "'layers\\[3\\].atn' matches no", "did you mean 'layers\\[1\\].attn", "Known: .*attn.wq"
    ):
        autopar.plan(
            recipe.step, *recipe.abstract(), cluster="cpu:8", options=autopar.Options(hints=["layers[3].atn: whole"])
        )


@pytest.mark.parametrize(
    "first, second, about",
    [
        ("state.w: rows over x", "state['w']: columns over x", "state\\['w'\\]"),
        ("state.w: S0", "state: whole", "state\\['w'\\]"),
        ("state.w: forbid tensor", "state.w: require tensor", ""),
        ("state.w: require data", "state.w: require tensor", "dot_general at steps.py"),
        ("state.w: forbid zero", "state.w: require zero", ""),
    ],
)
def test_two_hints_that_contradict_each_other_are_named(first, second, about):
    with refused(autopar.HintError, f"the hints '{_plain(first)}' and '{_plain(second)}' contradict", about):
        hinted(first, second)


def _plain(hint):
    return hint.replace("[", "\\[").replace("]", "\\]")


def test_what_only_the_program_finds_to_contradict():
    # Stored whole and used whole leaves no room for storing it in more parts than it is used in.
    with refused(autopar.HintError, "'state.w: whole' and 'state.w: require zero' contradict each other"):
        hinted("state.w: whole", "state.w: require zero", hint_costs=False)


def test_layouts_that_cannot_be():
    with refused(autopar.InfeasibleError, "x of shape", "cannot lie as 'dim 5 over x'", "2 dims", "Possible: R; S0"):
        hinted("x: dim 5 over x")
    with refused(autopar.InfeasibleError, "the mesh has no axis 'q', its axes are x"):
        hinted("x: rows over q")
    with refused(autopar.InfeasibleError, "mesh 8 has no axis 'z', its axes are x"):
        hinted("state.w: forbid tensor over z")
    with refused(autopar.InfeasibleError, "cannot lie as 'rows over x and y'", "dim 0 of 16 does not divide by 32"):
        hinted("state.w: rows over x and y", cluster="h100:4x8", mesh=(4, 8))


def test_what_a_strategy_leaves_no_room_for():
    with refused(autopar.HintError, "'state.w: require tensor' contradicts strategy 'data'", "strategy 'auto'"):
        hinted("state.w: require tensor", strategy="data", hint_costs=False)


def test_without_it_there_is_a_plan():
    with refused(autopar.InfeasibleError, "does not fit", "found is .* short", "Without 'state: whole' there is"):
        hinted("state: whole", memory_bytes=_tight(), mesh=(8,))


def _tight():
    """A budget in which the step fits, but not with its state whole."""
    free, whole = hinted(hint_costs=False), hinted("state: whole", hint_costs=False, memory_price=1e6)
    low = planned(options=autopar.Options(mesh=(8,), memory_price=1e6)).peak_bytes
    assert low < whole.peak_bytes and free.step_s > 0
    return (low + whole.peak_bytes) / 2


@pytest.mark.parametrize(
    "hints, options, kind, words",
    [
        (["params[1]: stage"], {"max_stages": 1}, autopar.OptionError, ("needs stages",)),
        (["params[1]: mesh 2x4"], {"max_stages": 1}, autopar.OptionError, ("this plan has no stages",)),
        (["params[1]: stage"], {"stages": 2}, autopar.OptionError, ("units 0, 3", "begins unit 2", "max_stages=2")),
        (["params[1]: mesh 3"], {}, autopar.OptionError, (r"mesh \(3,\) for a stage takes 3 devices", "1, 2, 4")),
        (
            ["params[1]: stage", "params[2]: stage"], {}, autopar.InfeasibleError,
            ("the hints 'params\\[1\\]: stage' and 'params\\[2\\]: stage' make 3 stages", "max_stages=2 allows 2"),
        ),
        (
            ["params[1]: mesh 2", "params[1].w: mesh 1x2"], {}, autopar.InfeasibleError,
            ("'params\\[1\\]: mesh 2' and 'params\\[1\\].w: mesh 1x2' contradict each other",),
        ),
        (["params[1]: mesh 4"], {"mesh": (2,)}, autopar.InfeasibleError, ("contradicts mesh=\\(2,\\)",)),
        (["opt_state[1][0].count: stage"], {}, autopar.OptionError, ("which the forward pass does not read",)),
    ],
)  # fmt: skip
def test_hints_about_stages(hints, options, kind, words):
    with refused(kind, *words):
        mlp(*hints, **options)


def test_a_stage_cannot_begin_in_the_middle_of_a_unit():
    recipe = get("gpt")
    options = autopar.Options(microbatches=4, max_stages=2, hints=["layers[1].attn.wo: stage"])
    words = (
        "no stage can begin at 'layers",
        "stands inside unit",
        "where units do: 0 .*, 1 ",
        "autopar.stage_boundary",
    )
    with refused(autopar.OptionError, *words):
        autopar.plan(recipe.step, *recipe.abstract(), cluster="cpu:4", options=options)


def test_questions_about_nothing(tmp_path):
    plan = hinted()
    with refused(autopar.OptionError, "name 'state.v' matches|name 'stat.u' matches", "did you mean"):
        plan.explain("stat.u")
    with refused(autopar.OptionError, "no one layout is that of all", "has 1 dims", "has 2 dims"):
        mlp(max_stages=1, microbatches=1).explain("params[1]")
    with refused(autopar.OptionError, "there is no option 'stagess'", "max_stages"):
        plan.what_if(stagess=2)
    plan.save(tmp_path / "plan.json")
    saved = autopar.load_plan(tmp_path / "plan.json")
    with refused(autopar.PlanError, "does not hold its step", "step=train_step", "--model gpt"):
        saved.explain("w")
    with refused(autopar.PlanError, "made for another step"):
        saved.explain("w", step=lambda w: w * 2, args=(1.0,))
    with refused(autopar.PlanError, "does not hold its step"):
        saved.what_if(stages=2)
