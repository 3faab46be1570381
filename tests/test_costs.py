"""Cost models against plain loops, the figures they reproduce, and what a board says of them."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core.board.board import read_board
from bench_core.board.schema import cost_columns, priced
from bench_core.costs import CostModel, OperationCounts, Operations, Overhead
from bench_core.costs.cmos45 import Cmos45, SeennCode
from bench_core.costs.imc import Imc
from bench_core.costs.memory import Memory
from bench_core.exits.strategy import NeverExit
from bench_core.knobs import Knob
from bench_core.plugins import load_registry
from bench_core.replay.controller import replay_policy
from bench_core.report.terminal import terminal
from bench_core.report.text_tables import energy_order
from bench_core.run.run import run_suite
from bench_core.run.suite import parse_suite
from bench_core.scoring.scores import mean_costs, operation_counts
from bench_core.trace.trace import Trace
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import (
    DIRECT,
    EVENTS,
    TINY_PLUGIN,
    parsed_suite,
    tiny_registry,
    tiny_suite,
    trained_store,
    write_plugin,
)
from tests.reference import costs as reference

thorough = settings(max_examples=150, deadline=None)
ROOT = Path(__file__).parent.parent
MODELS = {model.name: model for model in (Cmos45(), SeennCode(), Imc(), Memory())}
COUNTS = ("macs", "acs", "neuron_updates", "spikes")
OPERATIONS = ("macs", "additions", "multiplications", "comparisons", "exponentials", "logarithms")


@st.composite
def spendings(draw, *, policy_network=True):
    """What up to eight samples spent, under one controller."""
    counts = st.integers(0, 10**9)
    operations = st.dictionaries(st.sampled_from(OPERATIONS), st.integers(0, 10**6).map(float))
    once, per_decision = draw(operations) if policy_network else {}, draw(operations)
    samples = []
    for _ in range(draw(st.integers(1, 8))):
        t, more = draw(st.integers(1, 16)), draw(st.booleans())
        samples.append(reference.Spent(t, *(draw(counts) for _ in COUNTS), t - 1 + more, once, per_decision))
    return samples


def as_arrays(samples, **changes):
    """The same as the harness hands it to a model."""
    overhead = Overhead(Operations(**samples[0].once), Operations(**samples[0].per_decision))
    columns = {name: np.array([getattr(s, name) for s in samples]) for name in ("timesteps", *COUNTS, "decisions")}
    return OperationCounts(**{**columns, "overhead": overhead, **changes})


# --- each model against a loop ---------------------------------------------------------------------------------------


@given(spendings(), st.floats(0, 100), st.floats(0, 100), st.floats(0, 100))
@thorough
def test_cmos45_is_a_price_list_of_operations(samples, accumulate, mac, lookup):
    model = Cmos45(accumulate=accumulate, multiply_accumulate=mac, transcendental=lookup)
    expected = [reference.cmos45(spent, accumulate, mac, lookup) for spent in samples]
    assert model.energy(as_arrays(samples)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert Cmos45().energy(as_arrays(samples)) == pytest.approx([reference.cmos45(s) for s in samples], rel=1e-12)


@given(spendings())
@thorough
def test_seenn_code_takes_five_and_a_half_picojoules_per_multiply_accumulate(samples):
    expected = [reference.cmos45(spent, mac=5.5, lookup=5.5) for spent in samples]
    assert SeennCode().energy(as_arrays(samples)) == pytest.approx(expected, rel=1e-12)


@given(spendings(policy_network=False), st.floats(0, 1))
@thorough
def test_imc_is_affine_in_the_exit_timestep(samples, sigma_e):
    expected = [reference.imc(spent, sigma_e) for spent in samples]
    assert Imc(sigma_e=sigma_e).energy(as_arrays(samples)) == pytest.approx(expected, rel=1e-12)
    assert Imc().latency(as_arrays(samples)).tolist() == [spent.timesteps for spent in samples]


@given(spendings(), st.floats(8, 1024), st.floats(8, 1024), st.floats(8, 1024), st.floats(8, 1024), st.floats(0, 4))
@thorough
def test_memory_charges_arithmetic_and_every_access(samples, weights, potentials, spikes, activations, accesses):
    sizes = {"weights": weights, "potentials": potentials, "spikes": spikes, "activations": activations}
    model = Memory(**sizes, potential_accesses=accesses)
    expected = [reference.memory(spent, **sizes, potential_accesses=accesses) for spent in samples]
    assert model.energy(as_arrays(samples)) == pytest.approx(expected, rel=1e-12)
    assert Memory().energy(as_arrays(samples)) == pytest.approx([reference.memory(s) for s in samples], rel=1e-12)


def test_one_of_everything_by_hand():
    one = reference.Spent(1, 1, 1, 1, 1, 0, {}, {})
    assert Cmos45().energy(as_arrays([one])) == pytest.approx([5.5e-12])
    assert SeennCode().energy(as_arrays([one])) == pytest.approx([6.4e-12])
    weight = 20 + 96 * 80 / 992
    traffic = (weight + 2 * 20) + (weight + 10) + 2 * 20 + 2 * 10
    assert Memory().energy(as_arrays([one])) == pytest.approx([(5.5 + 2 * 0.9 + traffic) * 1e-12])
    assert Imc().energy(as_arrays([one])) == pytest.approx([1.0])


def test_imc_meets_the_two_figures_of_its_source():
    at = {t: Imc().energy(as_arrays([reference.Spent(t, 0, 0, 0, 0, 0, {}, {})]))[0] for t in (1, 8)}
    assert at[8] / at[1] == pytest.approx(4.9, abs=0.005)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_policy_network_is_charged_once_per_sample_or_not_priced_at_all(model):
    spent = reference.Spent(2, 10, 10, 10, 10, 2, {}, {"comparisons": 1.0})
    with_network = replace(spent, once={"macs": 1000.0})
    energies = [mean_costs(model, as_arrays([s])) for s in (spent, with_network)]
    if model.unit == "E(1)":
        assert energies[0] is not None
        assert energies[1] is None
    else:
        expected = 1000 * model.figure("multiply_accumulate")
        if isinstance(model, Memory):
            expected += 1000 * (reference.access(128) + reference.access(8))
        assert energies[1][0] - energies[0][0] == pytest.approx(expected * 1e-12)


@pytest.mark.parametrize(
    ("model", "asked"),
    [(Cmos45(), 2), (SeennCode(), 2), (Memory(), 2), (Imc(), 0), (Imc(sigma_e=0.01), 2)],
    ids=["cmos45", "seenn-code", "memory", "imc", "imc with sigma-E"],
)
def test_decisions_are_charged_one_by_one(model, asked):
    spent = reference.Spent(3, 10, 10, 10, 10, 0, {}, {"exponentials": 10.0, "logarithms": 10.0, "macs": 10.0})
    energy = [model.energy(as_arrays([replace(spent, decisions=n)]))[0] for n in (0, 1, 2)]
    assert energy[2] - energy[0] == pytest.approx(2 * (energy[1] - energy[0]))
    assert (energy[1] > energy[0]) == bool(asked)


# --- what is missing -------------------------------------------------------------------------------------------------

NEEDS = {
    "cmos45": {"macs", "acs", "overhead"},
    "seenn-code": {"macs", "acs", "overhead"},
    "memory": {"macs", "acs", "neuron_updates", "spikes", "overhead"},
    "imc": {"overhead"},
}


@pytest.mark.parametrize("missing", [*COUNTS, "overhead"])
@pytest.mark.parametrize("name", MODELS)
def test_a_missing_count_that_a_model_needs_makes_its_energy_not_available(name, missing):
    counts = as_arrays([reference.Spent(2, 5, 6, 7, 8, 2, {}, {})], **{missing: None})
    assert (mean_costs(MODELS[name], counts) is None) == (missing in NEEDS[name])


def test_the_models_that_come_with_exitbench_are_these():
    registry = load_registry()
    shipped = {n for n in registry.cost_models if registry.owners["cost_models", n].distribution == "exitbench"}
    assert shipped == MODELS.keys()


@pytest.mark.parametrize("unit", [("unit", "kWh"), ("latency_unit", "ms")])
def test_a_unit_that_no_column_can_name_is_refused(tmp_path, unit):
    source = (
        f"class Mine(CostModel):\n    name = 'mine'\n    {unit[0]} = {unit[1]!r}\n    def energy(self, counts): ...\n"
    )
    source += "@hookimpl\ndef bench_cost_models():\n    return [Mine()]\n"
    (problem,) = load_registry([write_plugin(tmp_path / "mine.py", source)]).problems
    assert unit[1] in str(problem)


# --- EDP -------------------------------------------------------------------------------------------------------------


@given(spendings(policy_network=False), st.sampled_from(sorted(MODELS)))
@thorough
def test_edp_is_the_mean_of_products(samples, name):
    counts = as_arrays(samples)
    energies = MODELS[name].energy(counts).tolist()
    energy, edp = mean_costs(MODELS[name], counts)
    assert energy == pytest.approx(sum(energies) / len(samples), rel=1e-12)
    products = [e * spent.timesteps for e, spent in zip(energies, samples, strict=True)]
    assert edp == pytest.approx(sum(products) / len(samples), rel=1e-12)


def saving(histogram):
    """EDP that the histogram of exits over t = 1 .. T saves over static T under imc, in percent."""
    exits = [t for t, count in enumerate(histogram, start=1) for _ in range(count)]
    dynamic, static = (
        mean_costs(Imc(), as_arrays([reference.Spent(t, 0, 0, 0, 0, 0, {}, {}) for t in ts]))[1]
        for ts in (exits, [len(histogram)])
    )
    return 100 * (1 - dynamic / static)


def with_mean(hundredths):
    """Every histogram of 100 exits over 1 .. 4 whose mean is so many hundredths."""
    for third in range(101):
        for fourth in range(101):
            second = hundredths - 100 - 2 * third - 3 * fourth
            first = 100 - second - third - fourth
            if first >= 0 and second >= 0:
                yield first, second, third, fourth


@pytest.mark.parametrize(
    ("average", "published", "product_of_means", "plausible"),
    [(146, 80, 82.8, (68, 22, 6, 4)), (127, 84, 86.3, (80, 14, 5, 1))],
    ids=["VGG-16", "ResNet-19"],
)
def test_imc_reproduces_the_edp_that_dt_snn_publishes(average, published, product_of_means, plausible):
    savings = {histogram: saving(histogram) for histogram in with_mean(average)}
    least, most = min(savings.values()), max(savings.values())
    assert least < published < most  # over all histograms with the published average
    mean = average / 100
    static = (0.443 + 0.557 * 4) * 4
    assert 100 * (1 - mean * (0.443 + 0.557 * mean) / static) == pytest.approx(product_of_means, abs=0.05)
    assert most < product_of_means  # E[L E] >= E[L] E[E]
    assert sorted(plausible, reverse=True) == list(plausible)
    assert savings[plausible] == pytest.approx(published, abs=0.5)  # as they round


# --- the first layer -------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_first_layer_is_charged_once_or_at_every_step_until_the_exit(data):
    samples, timesteps = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    counts = {n: torch.randint(0, 50, (samples, timesteps), generator=generator) for n in COUNTS}
    once = torch.randint(0, 1000, (samples,), generator=generator)
    logits = torch.rand(samples, timesteps, 2, generator=generator)
    trace = Trace(logits, torch.zeros(samples, dtype=torch.int64), torch.arange(samples), counts, once)
    outcome = replay_policy(NeverExit(), trace)
    exits = [data.draw(st.integers(1, timesteps)) for _ in range(samples)]
    outcome = replace(outcome, exit_timesteps=torch.tensor(exits))
    found = {
        "default": operation_counts(trace, outcome, Overhead()),
        "once": operation_counts(trace, outcome, Overhead(), "once"),
        "every-step": operation_counts(trace, outcome, Overhead(), "every-step"),
    }
    for i, exit_timestep in enumerate(exits):
        per_step = sum(int(counts["macs"][i, t]) for t in range(exit_timestep))
        charged = {"default": int(once[i]), "once": int(once[i])}
        charged["every-step"] = sum(int(once[i]) for _ in range(exit_timestep))
        for name, macs in charged.items():
            assert found[name].macs[i] == per_step + macs
            for count in ("acs", "neuron_updates", "spikes"):
                assert getattr(found[name], count)[i] == sum(counts[count][i, :exit_timestep])


@pytest.mark.parametrize("value", ["twice", "", 1, None])
def test_another_first_layer_is_refused_in_one_line(value):
    content = {**tiny_suite(), "first_layer": value}
    with pytest.raises(Exception, match="first_layer: Input should be 'once' or 'every-step'") as refused:
        parse_suite(content, "suite.toml")
    assert len(str(refused.value).splitlines()) == 1


# --- columns and boards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["J", "E(1)"])
@pytest.mark.parametrize("latency", ["s", "timestep"])
def test_columns_of_a_cost_model_are_documented_and_found_again(unit, latency):
    names = cost_columns("my_model[a=1]", unit, latency)
    assert len(names) == 4
    assert all("my_model[a=1]" in text for text in names.values())
    (cost,) = priced(names)
    assert (cost.model, cost.energy, cost.edp) == ("my_model[a=1]", *list(names)[::2])
    assert cost.edp_unit == f"{'µJ' if unit == 'J' else 'E(1)'}·{latency}"


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """Boards of the same traces with the first layer charged once and at every step."""
    folder = tmp_path_factory.mktemp("costs")
    store = trained_store(tmp_path_factory, folder / "store")
    shared = {
        "workloads": [DIRECT, EVENTS],
        "cost_models": ["cmos45", {"name": "imc", "parameters": {"sigma_e": 0.01}}, "memory"],
        "strategies": [{"name": name} for name in ("fixed", "stability", "seenn-i", "seenn-ii")],
    }
    return {
        first_layer: run_suite(
            parsed_suite(**shared, first_layer=first_layer),
            registry=load_registry([TINY_PLUGIN]),
            output=folder / first_layer,
            store=store,
        )
        for first_layer in ("once", "every-step")
    } | {"folder": folder}


def test_every_model_stands_on_the_board_by_its_label(boards):
    rows = boards["once"].rows
    labels = ["cmos45", "imc[sigma_e=0.01]", "memory"]
    assert [cost.model for cost in priced(rows.columns)] == labels
    units = ["µJ", "E(1)", "µJ"]
    shown = (boards["folder"] / "once" / "leaderboard.md").read_text()
    for label, unit in zip(labels, units, strict=True):
        escaped = label.replace("[", "\\[").replace("]", "\\]").replace("_", "\\_")
        assert f"| {unit} ({escaped}) " in shown
        assert f"| {unit}·timestep ({escaped}) " in shown
    assert "Order by energy" in shown
    assert "charged once, at t = 1" in shown
    assert shown.count("Order by energy") == 4  # two workloads, two operating points


def test_the_policy_network_has_no_price_under_imc(boards):
    rows = boards["once"].rows
    unpriced = rows[rows["energy_imc[sigma_e=0.01]_relative"].isna()]
    assert set(unpriced["strategy"]) == {"seenn-ii"}
    assert unpriced["energy_cmos45_joules"].notna().all()


def test_the_row_says_when_the_first_layer_was_charged(boards):
    once, every = boards["once"].rows, boards["every-step"].rows
    assert set(once["first_layer"]) == {"once"}
    assert set(every["first_layer"]) == {"every-step"}
    shown = (boards["folder"] / "every-step" / "leaderboard.md").read_text()
    assert "charged at every timestep up to the exit" in shown
    direct = once["workload"] == "direct"
    macs = 4 * (36 * 9 + 4 * 6 * 6 + 4 * 4)  # weights inside the image, 3 x 3 over 8 x 8
    later = (every["average_exit_timestep"] - 1) * macs * 4.6e-12
    expected = once["energy_cmos45_joules"] + later.where(direct, 0.0)  # events meet the first layer as they come
    assert every["energy_cmos45_joules"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-12)
    for name in ("accuracy", "rank", "energy_imc[sigma_e=0.01]_relative"):
        pd.testing.assert_series_equal(once[name], every[name])
    assert (every["energy_cmos45_share"] <= 1 + 1e-9)[every["strategy"] == "fixed"].all()


def test_shares_are_of_static_t(boards):
    rows = boards["once"].rows
    for row in rows[(rows["strategy"] == "fixed") & (rows["workload"] == "direct")].to_dict("records"):
        t = int(row["value"])
        sigma = 0.01 * np.array([min(t, 3), 0])
        energies = 0.443 + 0.557 * np.array([t, 4]) + sigma
        assert row["energy_imc[sigma_e=0.01]_relative"] == pytest.approx(energies[0])
        assert row["edp_imc[sigma_e=0.01]_relative_timesteps"] == pytest.approx(energies[0] * t)
        assert row["edp_imc[sigma_e=0.01]_share"] == pytest.approx(energies[0] * t / energies[1] / 4)


def test_a_board_with_costs_reads_back_and_fits_a_terminal(boards):
    text = terminal(read_board(boards["folder"] / "once"), ["iso-accuracy:1"])
    assert text == terminal(boards["once"], ["iso-accuracy:1"])
    # On a busy machine each row has a remark that says so, behind the table that fits.
    idle = boards["once"].measurements.assign(clock_remark=None)
    assert max(map(len, terminal(replace(boards["once"], measurements=idle), ["iso-accuracy:1"]).splitlines())) <= 100
    assert text.count("Order by energy") == 2
    manifest = json.loads((boards["folder"] / "once" / "manifest.json").read_text())
    assert manifest["suite"]["first_layer"] == "once"
    assert parse_suite(manifest["suite"], "manifest").cost_models[1].parameters == {"sigma_e": 0.01}


def test_a_model_listed_twice_stands_on_the_board_once(boards, tmp_path):
    board = run_suite(
        parsed_suite(cost_models=["cmos45", "cmos45", {"name": "cmos45"}], strategies=[{"name": "fixed"}]),
        registry=tiny_registry(),
        output=tmp_path / "board",
    )
    assert [cost.model for cost in priced(board.rows.columns)] == ["cmos45"]


def test_a_suite_that_names_no_cost_model_gets_three():
    assert parsed_suite(cost_models=None).cost_models == ["cmos45", "imc", "memory"]


# --- does the order by energy depend on the model? -------------------------------------------------------------------


def table(**energies):
    return pd.DataFrame({f"energy_{name}_joules": values for name, values in energies.items()})


ORDERS = {
    "one model": (table(a=[1.0, 2.0]), ""),
    "no model": (table(), ""),
    "the same order": (table(a=[1.0, 2.0, 3.0], b=[5.0, 6.0, 9.0]), "(3 of 3 rows): the same under a and b."),
    "the same with a tie": (table(a=[1.0, 1.0, 3.0], b=[2.0, 2.0, 9.0]), ": the same under a and b."),
    "a tie but for rounding": (table(a=[1.0, 1.0, 3.0], b=[0.3, 0.1 + 0.2, 9.0]), ": the same under a and b."),
    "a tie under one only": (table(a=[1.0, 1.0, 3.0], b=[1.0, 2.0, 9.0]), "τ: a against b 0.816."),
    "three models": (table(a=[1.0, 2.0], b=[1.0, 3.0], c=[4.0, 5.0]), ": the same under a, b and c."),
    "reversed": (
        table(a=[1.0, 2.0, 3.0], b=[3.0, 2.0, 1.0]),
        "(3 of 3 rows) differs, Kendall's τ: a against b -1.000.",
    ),
    "one pair swapped": (table(a=[1.0, 2.0, 3.0], b=[1.0, 3.0, 2.0]), "a against b 0.333."),
    "two of three agree": (table(a=[1.0, 2.0], b=[2.0, 1.0], c=[4.0, 5.0]), "τ: a and c against b -1.000."),
    "all three differ": (
        table(a=[1.0, 2.0, 3.0], b=[1.0, 3.0, 2.0], c=[3.0, 2.0, 1.0]),
        "τ: a against b 0.333, a against c -1.000, b against c -0.333.",
    ),
    "a row that one didn't price": (
        table(a=[1.0, 2.0, 3.0], b=[2.0, None, 9.0]),
        "(2 of 3 rows): the same under a and b.",
    ),
    "a model that priced nothing": (
        table(a=[1.0, 2.0], b=[2.0, 1.0], c=[None, None]),
        "(2 of 2 rows) differs, Kendall's τ: a against b -1.000.",
    ),
    "all rows alike under one": (table(a=[1.0, 2.0], b=[3.0, 3.0]), "a against b none (all rows alike)."),
    "all rows alike under both": (table(a=[2.0, 2.0], b=[3.0, 3.0]), ": the same under a and b."),
    "one row": (table(a=[1.0], b=[2.0]), "n/a, no two rows are priced by two models."),
    "nothing priced": (table(a=[None, None], b=[None, None]), "n/a, no two rows are priced by two models."),
}


@pytest.mark.parametrize(("rows", "words"), ORDERS.values(), ids=ORDERS)
def test_the_board_says_whether_the_order_by_energy_changes(rows, words):
    said = energy_order(rows)
    assert said.endswith(words)
    assert bool(said) == bool(words)


# --- the page --------------------------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "costs.md"


def test_the_page_names_every_model_and_every_figure():
    text = PAGE.read_text(encoding="utf-8")
    for model in MODELS.values():
        section = re.search(rf"^## `{model.name}`.*?(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
        assert section is not None, model.name
        for knob in model.knobs:
            assert re.search(rf"^\| `{knob.name}` \| {knob.default:g} ", section[0], flags=re.MULTILINE), knob.name


def test_the_page_shows_what_its_code_prints():
    text = PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, flags=re.DOTALL)
    assert shown
    for code, output in shown:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, {})
        assert printed.getvalue() == output


def test_a_third_party_model_may_know_seconds(tmp_path):
    class Clocked(CostModel):
        name = "clocked"
        reference = ""
        latency_unit = "s"
        knobs = (Knob("period", "float", 1e-3),)

        def energy(self, counts):
            return counts.timesteps * 2.0

        def latency(self, counts):
            return counts.timesteps * self.figure("period")

    counts = as_arrays([reference.Spent(t, 0, 0, 0, 0, 0, {}, {}) for t in (1, 3)])
    assert mean_costs(Clocked(), counts) == pytest.approx((4.0, 10e-3))
    assert priced(cost_columns("clocked", "J", "s"))[0].edp_unit == "µJ·s"
