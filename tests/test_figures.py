"""Every figure on full and on sparse tables, what it chooses to draw, and files that repeat to the byte."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_study import MODEL, write_tables
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from shadowcore import artifacts
from shadowcore.provenance import file_sha256
from shadowcore.report import drawn, style
from shadowcore.report.claims import CLAIMS
from shadowcore.report.figures import FIGURES, TIMED_FIGURES, save
from shadowcore.report.figures.bytes import undominated
from shadowcore.report.figures.claims import SENTENCES
from shadowcore.report.figures.lines import lines
from shadowcore.report.looks import METHODS
from shadowcore.report.select import best_predictors, contextual, over_seeds, trained_alike
from shadowcore.stages import draw

HEADER = {"stage": "draw", "spec": {"model": 'a (b) \\ "c" é'}, "inputs": {"tables": ["0" * 64]}}


@pytest.fixture(scope="module")
def frames(frames):
    """The tables of the made-up study with one more criterion and, compared with dense, one more task."""
    perplexity, compared = frames["perplexity"], frames["comparisons"]
    more = {
        "perplexity": perplexity.query("method == 'static' and criterion == 'l2_norm'").assign(criterion="snip"),
        "comparisons": compared[compared["metric"] == "acc"].assign(task="copa", data="copa"),
    }
    return frames | {name: pd.concat([frames[name], rows], ignore_index=True) for name, rows in more.items()}


def drawing(name, frames):
    """A figure in which every artist has drawn itself, without the search for a layout, which takes long."""
    figure = FIGURES[name](frames, MODEL)
    if not isinstance(figure, str):
        figure.set_layout_engine("none")
        figure.draw_without_rendering()
    return figure


def texts(figure):
    """Everything written in a figure."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_name_their_model_and_their_files_repeat_to_the_byte(frames, name, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "PNG_DPI", 40)
    runs = []
    for run in ("1", "2"):
        figure = drawing(name, frames)
        assert any(MODEL in text for text in texts(figure))
        runs.append(save(figure, tmp_path / run / name, HEADER))
    assert [path.name for path in runs[0]] == [f"{name}.pdf", f"{name}.png"]
    for one, other in zip(*runs, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert artifacts.read_origin(one) == {"schema": "figure/1", "header": HEADER}
        assert not any(word in one.read_bytes() for word in (b"CreationDate", b"Software", b"atplotlib"))


def test_only_figures_with_something_to_show_are_written_and_name_the_tables_they_were_drawn_from(built, tmp_path):
    paths = write_tables(tmp_path, built)
    names, folder = ("perplexity", "latency", "fewshot", "tasks"), tmp_path / "figures" / MODEL
    figures = [folder / f"{name}{kind}" for name in names for kind in (".pdf", ".png")]
    record = tmp_path / "figures" / f"{MODEL}.json"
    draw.run(draw.Spec(MODEL, names), draw.Inputs(tuple(paths)), draw.Outputs(drawn=record, figures=folder))
    for path in figures[:4]:
        read = {"perplexity": ["perplexity", "predictors"], "latency": ["latency"]}[path.stem]
        hashes = {name: [file_sha256(tmp_path / f"tables/{name}.parquet")] for name in read}
        assert artifacts.read_header(path)["inputs"] == hashes
    assert not any(path.exists() for path in figures[4:])
    (found,) = drawn.read([record])
    assert list(found.files.values()) == [figures[1], figures[3]] and set(found.left_out) == {"fewshot", "tasks"}
    assert all(f"{name} ({why})" in found.sentence() for name, why in found.left_out.items())
    assert MODEL in found.sentence()


def dense_only(frames):
    """The tables of a study with nothing but the dense model."""
    kept = {"accuracy": "method", "perplexity": "method", "latency": "mode"}
    return {
        name: table[table[kept[name]] == "dense"] if name in kept else table.iloc[:0] for name, table in frames.items()
    }


@pytest.mark.parametrize("name", FIGURES | TIMED_FIGURES)
def test_a_figure_with_nothing_to_show_says_why(frames, name):
    draw_one = (FIGURES | TIMED_FIGURES)[name]
    for nothing in ({}, {table: rows.iloc[:0] for table, rows in frames.items()}, dense_only(frames)):
        reason = draw_one({"latency": frames["latency"].iloc[:0]} | nothing, MODEL)
        assert isinstance(reason, str) and 10 < len(reason) < 80


# ---- tables that lack something or have more


def without(**lacking):
    def change(frames):
        for column, values in lacking.items():
            frames = {
                table: rows[~rows[column].isin(values)] if column in rows else rows for table, rows in frames.items()
            }
        return frames

    return change


def without_criterion(frames):
    """Tables with a baseline that has no criterion, and criteria that only one method knows."""
    changed = {}
    for table in ("accuracy", "perplexity"):
        rows = frames[table].replace({"criterion": {"l2_norm": "jacov"}})
        baseline = rows[rows["method"] == "oracle"].assign(method="threshold", criterion=np.nan)
        changed[table] = pd.concat([rows, baseline], ignore_index=True)
    return frames | changed


def without_intervals(frames):
    bare = {"low": np.nan, "high": np.nan}
    return {name: rows.assign(**bare) if "low" in rows else rows for name, rows in frames.items()}


CHANGES = {
    "no methods": without(method=["dense", "static"], mode=["dense"]),
    "no neurons": without(units=["neurons"], kind=["neurons"]),
    "no plainact": without(criterion=["plainact"], metric=["recall"]),
    "one policy, no intervals": lambda frames: without_intervals(
        without(policy=["per_layer"], method=["random"])(frames)
    ),
    "no criterion": without_criterion,
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("change", CHANGES)
def test_figures_draw_tables_that_lack_something(frames, name, change):
    drawing(name, CHANGES[change](frames))


def several_seeds(frames):
    """Tables in which everything trained was trained with another seed, too, to the same values."""
    again = {}
    for table, rows in frames.items():
        if {"seed", "predictor"} <= set(rows):
            rows = pd.concat([rows, rows[rows["predictor"].notna()].assign(seed=5)], ignore_index=True)
        again[table] = rows
    return again


def another_model(frames):
    """Tables with the same rows of another model."""
    return {table: pd.concat([rows, rows.assign(model="another")]) for table, rows in frames.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_seeds_as_one_line_and_one_model_only(frames, name):
    more = another_model(frames if name == "tasks" else several_seeds(frames))
    once, twice = FIGURES[name](frames, MODEL), FIGURES[name](more, MODEL)
    assert texts(once) == texts(twice)
    for kind, data in ((Line2D, Line2D.get_xydata), (AxesImage, AxesImage.get_array)):
        ours, others = (list(map(data, figure.findobj(kind))) for figure in (once, twice))
        assert len(ours) == len(others) and all(map(np.allclose, ours, others))


@pytest.mark.parametrize("name", ["quality_per_byte", "perplexity", "designs", "sizes"])
def test_the_luckiest_draw_of_the_calibration_text_is_not_drawn(frames, name):
    rows = frames["perplexity"]
    draw = rows[rows["method"].isin(["shadow", "static"])].assign(calibration="a draw")
    lucky = frames | {"perplexity": pd.concat([rows, draw.assign(value=draw["value"] / 2)], ignore_index=True)}
    once, again = (list(map(Line2D.get_xydata, FIGURES[name](one, MODEL).findobj(Line2D))) for one in (frames, lucky))
    assert len(once) == len(again) and all(map(np.array_equal, once, again))


# ---- what is chosen


def test_every_claim_has_a_sentence_in_its_figure():
    assert list(SENTENCES) == list(CLAIMS)


@pytest.mark.parametrize(("methods", "shown"), [
    (["shadow", "layerwise", "static"], ["a", "b", ""]),  # c was trained in another way
    (["layerwise", "static"], ["c", ""]),
    (["shadow", "layerwise", "static", "static_tuned"], ["a", "b", "", "d"]),  # d has no other training
])  # fmt: skip
def test_methods_are_shown_with_predictors_that_were_trained_alike(methods, shown):
    made = [("shadow", "a", 0, False, 8), ("layerwise", "b", 0, False, 8), ("layerwise", "c", 1, True, 8),
            ("static_tuned", "d", 0, True, 0)]  # fmt: skip
    columns = ["method", "predictor", "rounds", "tuned", "rank"]
    predictors = pd.DataFrame(made, columns=columns).assign(model=MODEL, kind="neurons")
    static = pd.DataFrame({"method": ["static"], "predictor": [None]})
    rows = pd.concat([predictors[:3][columns[:2]], static, predictors[3:][columns[:2]]]).query("method in @methods")
    rows = rows.assign(units="both")
    found = trained_alike({"predictors": predictors}, MODEL, rows)
    assert list(found["predictor"].fillna("")) == shown
    assert list(found["rank"].fillna(-1)) == [{"": -1, "d": 0}.get(name, 8) for name in shown]
    # nothing is known of how they were trained
    assert len(trained_alike({"predictors": predictors[:0]}, MODEL, rows)) == len(rows)


def test_a_panel_has_at_most_seven_lines_and_every_method_of_its_own_is_among_them(frames):
    rows = frames["perplexity"].query("units != 'heads' and criterion != 'l2_norm'")
    extra = ["segments", "threshold", "griffin", "relu", "layerwise_own", "mine"]
    static = rows[rows["method"] == "static"]
    many = pd.concat([rows, *(static.assign(method=name, predictor=None) for name in extra)])
    methods = [line.method for line in lines(many)]
    assert len(methods) == 7 and "mine" in methods and not {"griffin", "relu", "random", "threshold"} & set(methods)
    assert methods[0] == "dense" and len(lines(many[many["method"] != "dense"])) == 6


def test_methods_differ_in_colour_and_in_marker():
    for one, other in itertools.combinations(METHODS.values(), 2):
        apart = np.subtract(*(matplotlib.colors.to_rgb(each.color) for each in (one, other)))
        assert np.linalg.norm(apart) > 0.25 and one.marker != other.marker, (one, other)


def test_labels_at_line_ends_do_not_overlap():
    figure, (axes,) = style.panels(1)
    axes.plot([0, 1], [0, 1])
    ends = [(1, value, f"m{number}", "k") for number, value in enumerate((0.5, 0.5, 0.5, 0.98, 1, 5))]
    style.end_labels(axes, [*ends, (0.5, 0.5, "inside", "k")])
    *right, inside = axes.texts
    heights = sorted(text.xyann[1] for text in right)
    assert len(heights) == 5  # what lies outside the panel has no label there
    assert min(np.diff(heights)) >= 0.05 and heights[0] > 0.2 and heights[-1] < 1.1
    assert all(text.xyann[0] > 1 for text in right)
    assert np.allclose(inside.xyann, inside.xy, atol=0.05) and inside.arrow_patch is None  # at its point


def test_of_several_predictors_the_one_measured_most_and_best_is_drawn(frames):
    rows = frames["perplexity"]
    rows = rows[(rows["method"] != "shadow") | (rows["predictor"] == "small")]
    shadow = rows[rows["method"] == "shadow"]
    more = [shadow.assign(predictor=f"p{i}", value=shadow["value"] * (1 + i / 10)) for i in range(1, 5)]
    once = shadow.iloc[:1].assign(predictor="best", value=1.0)  # in one place only
    many = pd.concat([rows, *more, once], ignore_index=True)
    for low_is_good, shown in ((True, "small"), (False, "p4")):
        found = best_predictors(many, low_is_good)
        assert set(found.loc[found["method"] == "shadow", "predictor"]) == {shown}
        pd.testing.assert_frame_equal(found[found["method"] != "shadow"], many[many["method"] != "shadow"])
    assert "shadow\nsmall, rank 512" in texts(FIGURES["perplexity"](frames | {"perplexity": many}, MODEL))


def test_criteria_that_only_fixed_units_go_by_are_left_to_their_own_figure(frames):
    rows = frames["perplexity"].query("criterion != 'snip'")
    static = rows[(rows["method"] == "static") & (rows["criterion"] == "l2_norm")].assign(criterion="nwot")
    baseline = rows[rows["method"] == "oracle"].iloc[:1].assign(method="threshold", criterion=None)
    found = contextual(pd.concat([rows, static, baseline], ignore_index=True))
    assert "nwot" not in set(found["criterion"]) and len(found) == len(rows) + 1
    assert len(contextual(static)) == len(static)


def test_seeds_are_drawn_at_their_mean_in_an_interval_over_all_theirs(frames):
    rows = frames["perplexity"]
    trained = rows[rows["predictor"].notna()]
    other = trained.assign(seed=5, value=trained["value"] + 2, low=trained["low"] - 1, high=trained["high"] + 3)
    joined = over_seeds(pd.concat([rows, other], ignore_index=True))
    assert len(joined) == len(rows) and list(joined) == list(rows)
    keys = ["method", "criterion", "predictor", "policy", "units", "sparsity_pct"]
    found, before = (table[table["predictor"].notna()].set_index(keys).sort_index() for table in (joined, rows))
    for name, change in (("value", 1), ("low", -1), ("high", 3), ("seed", 0)):
        assert np.allclose(found[name], before[name] + change)


def test_one_task_on_two_texts_is_two_panels(frames):
    rows = frames["accuracy"].query("task == 'true_continuation'")
    written = texts(FIGURES["accuracy"]({"accuracy": pd.concat([rows, rows.assign(data="c4")])}, MODEL))
    assert {"true_continuation, c4", "true_continuation, wikipedia"} <= set(written)


def test_bytes_are_drawn_where_they_were_counted_and_dominated_conditions_are_not(frames):
    rows = frames["perplexity"]
    reason = FIGURES["quality_per_byte"](frames | {"perplexity": rows.assign(read_share=np.nan)}, MODEL)
    assert isinstance(reason, str) and "bytes" in reason
    points = pd.DataFrame({"read_share": [0.9, 0.8, 0.7, 0.8], "value": [1.5, 1.2, 2.0, 1.3]})
    assert list(undominated(points).index) == [1, 2]
    assert "oracle" not in texts(FIGURES["quality_per_byte"](frames, MODEL))
    # a line that goes on above the panel ends in an arrow
    high = rows["value"].where(rows["method"] != "static", rows["value"] * rows["sparsity_pct"])
    (axes,) = FIGURES["quality_per_byte"](frames | {"perplexity": rows.assign(value=high)}, MODEL).axes
    top = axes.get_ylim()[1]
    assert any(text.arrow_patch and text.get_text() == "" and np.isclose(text.xy[1], top) for text in axes.texts)
    # the published designs are drawn however many methods are better
    static = rows[rows["method"] == "static"]
    better = [static.assign(method=f"new{i}", value=static["value"] / (9 - i)) for i in range(7)]
    found = texts(FIGURES["quality_per_byte"](frames | {"perplexity": pd.concat([rows, *better])}, MODEL))
    shown = {*rows["method"], *(f"new{i}" for i in range(7))} & set(found) - {"dense"}
    assert {"shadow", "layerwise", "new0"} <= shown and len(shown) == 6


def test_a_learning_curve_joins_predictors_that_differ_in_tokens_alone(frames):
    (axes,) = FIGURES["learning_curves"](frames, MODEL).axes
    (curve,) = (line for line in axes.lines if line.get_marker() == METHODS["shadow"].marker)
    assert list(curve.get_xdata()) == [10_000, 100_000]
    alone = frames["predictors"][frames["predictors"]["predictor"] != "less"]
    assert "differ only" in FIGURES["learning_curves"](frames | {"predictors": alone}, MODEL)
