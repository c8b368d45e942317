"""The final tables as blocks of words and numbers, for a terminal or a page: the answer, a summary, all of them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from shadowcore.report.answer import Best, best, change, leading, ordered, p_value
from shadowcore.report.select import NAMES, ORDERS, PAIR, by_task, first_of, where
from shadowcore.report.tables import Tables

# what a line is about; what is the same in every line is written once, above them
LINE = ["model", "device", "data", "task", "fewshot", "metric", "kind", "units", "criterion", "policy", "protocol"]
LINE += ["calibration", "predictor", "dtype", "batch", "prompt_tokens", "new_tokens", "seed", "method"]
LINE += ["predictor_rank", "predictor_bits"]
WHY = ["job", "reason"]
LISTED = 20  # missing jobs that are named one by one
# what tells two rows of one claim apart
CLAIMED = ["model", "data", "device", "dtype", "prompt_tokens", "new_tokens", "metric", "units", "criterion", "policy"]
CLAIMED += ["predictor_rank", "predictor_bits", "protocol", "calibration", "sparsity_pct", "predictor"]
CLAIMED += ["side_winner", "side_loser"]
# a summary shows the first value of each of these; perplexity, accuracy and time have the same condition
CONDITION_SHOWN = ["units", "criterion", "policy", "protocol", "calibration", "seed"]
CHOSEN = ["weights", "device", "batch", "data", "task", "fewshot", *CONDITION_SHOWN]

Cell = Callable[[pd.Series], str]


class Block(NamedTuple):
    """A table to look at: what it shows, what is the same in every line, its columns of words and of numbers."""

    title: str
    note: str
    words: list[str]
    numbers: list[str]
    rows: list[list[str]]


def lacking(missing: Sequence[Mapping[str, str]]) -> Block | None:
    """What tables and a page lack of their study, by job and reason; None for a complete study."""
    if not missing:
        return None
    rows = [[one["job"], one["reason"]] for one in missing[:LISTED]]
    if len(missing) > LISTED:
        rows.append([f"{len(missing) - LISTED} more", "`shadowcore status` names them"])
    note = "the numbers here are those of the other jobs; the same command makes the rest when the cause is mended"
    return Block("INCOMPLETE: some jobs of this study failed, and what needs them is missing", note, WHY, [], rows)


def refused(found: Tables) -> Block | None:
    """Decoding modes that were not timed, because their check failed; None if there are none."""
    rows = found["refused"]
    if rows.empty:
        return None
    names = ["model", "device", "batch", "prompt_tokens", "new_tokens"]
    names = ["model", *(name for name in names[1:] if rows[name].nunique() > 1), "variant"]
    lines = [[*(_text(row[name]) for name in names), row["reason"]] for _, row in rows.iterrows()]
    title = "REFUSED: these decoding modes failed their check and were not timed"
    return Block(title, "a time of wrong output would say nothing", [*names, "reason"], [], lines)


def answers(found: Tables, everything: bool = False) -> Iterator[Block]:
    """The best method at each sparsity, by model and measure; everything: under all units and policies."""
    models = dict.fromkeys([*found["perplexity"]["model"], *found["accuracy"]["model"]])
    for model in models:
        for name in ("perplexity", "accuracy"):
            rows = ordered(best(found, model, name))
            shown = rows if everything else leading(rows)
            if shown:
                title = f"{model}: best method by {name}" + (", all conditions" if everything else "")
                yield _answer(shown, title, log=name == "perplexity")


def _answer(rows: list[Best], title: str, log: bool) -> Block:
    question = ["data" if log else "task_label", "units", "policy", "sparsity_pct", "criterion"]
    shown = [name for name in question if len({_text(one.row[name]) for one in rows}) > 1 or name == "sparsity_pct"]
    same = [_text(rows[0].row[name]) for name in question if name not in shown]
    lines = []
    for one in rows:
        value, low, high = (number(one.row[name], like=one.row["value"]) for name in ("value", "low", "high"))
        runner_up = f"{method_name(one.runner_up)} {p_value(one.against_next['p_holm'])}" if one.against_next else "-"
        lines.append([
            *(_text(one.row[name]) or "none" for name in shown), method_name(one.row),
            number(100 * one.row["read_share"]), f"{value} [{low}, {high}]",
            change(one.dense, log), change(one.static, log), runner_up,
        ])  # fmt: skip
    note = ", ".join(filter(None, same)) + "; " * any(same)
    note += "[95 % interval]; p is corrected (Holm), and a difference is significant where p < .05"
    words = [{"data": "text", "task_label": "task", "sparsity_pct": "% removed"}.get(name, name) for name in shown]
    unit = "" if log else ", points"
    value = "perplexity" if log else "accuracy"
    numbers = ["% bytes read", value, f"against dense{unit}", f"against static{unit}", "next best"]
    return Block(title, note, [*words, "best"], numbers, lines)


def method_name(row: Mapping[str, Any]) -> str:
    return " ".join(_text(row[name]) for name in ("method", "predictor") if _text(row[name]))


def _between(row: pd.Series, columns: str, scale: float = 1) -> str:
    """A value with its sign and the ends of its interval, such as "+0.1 [0.0, +0.2]"; columns: their three names."""
    digits = ".3f" if scale == 1 else ".1f"
    value, low, high = (f"{scale * row[name]:+{digits}}" for name in columns.split())
    return f"{value} [{low}, {high}]"


def measured(found: Tables) -> Iterator[Block]:
    """What was measured: a block for each of the final tables."""

    def estimate(row: pd.Series) -> str:
        return f"{number(row['value'])} ± {number(row['stderr'], like=row['value'])}"

    def change(row: pd.Series) -> str:
        scale = 1 if row["metric"].startswith("log_") else 100  # nats, or percentage points
        return f"{_between(row, 'difference low high', scale)} {p_value(row['p_value'])}"

    def times(row: pd.Series) -> str:
        median, low, high = (number(row[f"ms_{name}"], row["ms_per_token"]) for name in ("per_token", "p10", "p90"))
        return f"{median} [{low}, {high}]"

    compared = where(found["comparisons"], reference="dense")
    logs = compared["metric"].str.startswith("log_")
    recall = where(found["quality"], metric="recall").drop(columns="metric")
    keys = [name for name in [*LINE, "sparsity_pct"] if name in recall]
    recall = recall.groupby(keys, dropna=False, as_index=False)["value"].mean()
    for title, rows, cell in (
        ("Perplexity ± standard error", found["perplexity"].drop(columns="task"), estimate),
        ("Accuracy ± standard error", found["accuracy"], estimate),
        ("Log-perplexity minus dense, nats [95 %, paired], p of a t-test", compared[logs].drop(columns="task"), change),
        ("Accuracy minus dense, percentage points [95 %, paired], McNemar's p", compared[~logs], change),
        ("Recall of kept units, mean over layers; static is the constant predictor", recall, _value),
        (
            "Milliseconds per token: median [10 %, 90 % of repeats]",
            found["latency"].rename(columns={"mode": "method"}),
            times,
        ),
    ):
        if len(rows):
            shown = [name for name in LINE if name in rows]
            same = [name for name in shown if name != "method" and rows[name].nunique() <= 1]
            note = [_named(name, rows[name].dropna().iloc[0]) for name in same if rows[name].notna().any()]
            names = [name for name in shown if name not in same]
            yield _block(title, note, names, {"": _cells(rows, names, cell)})


def claimed(found: Tables) -> Iterator[Block]:
    """Every published claim and our pairs. An effect is the logarithm of a ratio, or a difference of correlations."""
    for statement, rows in found["claims"].groupby("statement", sort=False):
        compared = rows[rows["verdict"] != "not attempted"]
        names = [name for name in CLAIMED if compared[name].nunique(dropna=False) > 1]
        if rows["model"].nunique() > 1 and "model" not in names:  # one was compared, or none
            names.insert(0, "model")
        same = [name for name in CLAIMED if name not in names and compared[name].notna().any()]
        note = [_named(name, compared[name].iloc[0]) for name in same]
        lines = [
            [*(_text(row[name]) for name in names), row["verdict"], _effect(row), _published(row), _text(row["reason"])]
            for _, row in rows.sort_values(names, kind="stable").iterrows()
        ]
        yield Block(statement, ", ".join(note), [*names, "verdict"], ["ours [95 %]", "published", "why"], lines)


def summaries(found: Tables) -> Iterator[Block]:
    """A line per method and predictor, under each model's main units, criterion and policy: perplexity, accuracy, time.

    Units, criterion and policy are those of the first table that has the model.
    """
    parts = {
        "ppl": (where(found["perplexity"], metric="token_perplexity").drop(columns="task"), _value),
        "acc": (by_task(found["accuracy"]), _value),
        "ms": (timed(found).rename(columns={"ms_per_token": "value"}), _value),
    }
    for model in sorted({model for rows, _ in parts.values() for model in rows["model"]}):
        chosen, note, condition = {}, {}, {}
        for part, (rows, _) in parts.items():
            rows = where(rows, model=model)
            for name, value in condition.items():
                rows = rows[rows[name].isna() | rows[name].isin([value, "random"])] if name in rows else rows
            chosen[part] = rows = first_of(rows, *CHOSEN)
            note |= {name: value for name, value in _first_values(rows) if name not in condition}
            condition = {name: note[name] for name in CONDITION_SHOWN if name in note}
        names = [name for name in PAIR if any(rows[name].notna().any() for rows in chosen.values())]
        cells = {part: _cells(rows, names, parts[part][1]) for part, rows in chosen.items() if len(rows)}
        title = f"{model} (ppl token perplexity, acc accuracy, ms per token with a predictor of this size)"
        words = [_named(name, value) for name, value in note.items() if name != "weights" or value == "random"]
        yield _block(title, words, names, cells)


def _first_values(rows: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    """The first value of every column in CHOSEN."""
    named = rows[rows["method"] != "random"]  # random is a criterion of its own
    for name in CHOSEN:
        if name in named and named[name].notna().any():
            yield name, named[name].dropna().iloc[0]


def _cells(rows: pd.DataFrame, names: list[str], cell: Cell) -> pd.DataFrame:
    """Cells by the values of `names`, a column a sparsity; dense is at 0 %. Slashes are between those of one place."""
    words = {name: list(map(_text, rows[name])) for name in names}
    places = words | {
        "sparsity_pct": rows["sparsity_pct"].astype(int),
        "cell": [cell(row) for _, row in rows.iterrows()],
    }
    return pd.DataFrame(places).groupby([*names, "sparsity_pct"])["cell"].agg(" / ".join).unstack()


def _by_number(text: str) -> tuple[float, str]:
    """Numbers by their size, words after them by name."""
    return (float(text), "") if text.replace(".", "", 1).isdecimal() else (math.inf, text)


def _block(title: str, note: list[str], names: list[str], cells: Mapping[str, pd.DataFrame]) -> Block:
    """Lines in the order of ORDERS, or by name, with a column for each heading of `cells` and each sparsity.

    What has no value, as dense has none, comes first.
    """

    def rank(line: list[str]) -> list:
        return [(text != "", ORDERS.get(name, _by_number)(text)) for name, text in zip(names, line, strict=False)]

    table = pd.concat(cells, axis=1).fillna("")
    sparsities = [f"{heading}\n{sparsity} %".strip() for heading, sparsity in table]
    return Block(title, ", ".join(note), names, sparsities, sorted(table.reset_index().to_numpy().tolist(), key=rank))


def _effect(row: pd.Series) -> str:
    if pd.isna(row["effect"]):
        return "-"
    pair = f"{number(row['value_winner'])} against {number(row['value_loser'])}"
    return f"{pair}: {_between(row, 'effect low high')}"


def _published(row: pd.Series) -> str:
    pair = f"{_text(row['published_value_winner'])} against {_text(row['published_value_loser'])}: "
    place = [row["published_model"], row["published_units"], row["published_sparsity_pct"]]
    words = [_text(part) + (" %" if part is place[2] else "") for part in place if pd.notna(part)]
    pair = "" if pd.isna(row["published_value_winner"]) else pair
    return f"{pair}{row['published_effect']:+.3f} ({' '.join(words) or 'headline'})"


def timed(found: Tables) -> pd.DataFrame:
    """Latencies with the columns of perplexities: modes are methods; decoders keep units per layer for each token.

    `latency` has the sizes of a timed predictor. A row is repeated for each of the study's predictors of these sizes,
    because a time does not depend on their weights; without such a predictor, the sizes are its name.
    """
    rows = found["latency"].rename(columns={"mode": "method"})
    rows["kind"] = rows["units"].replace("both", "neurons").where(rows["weights"] == "pretrained")
    rows["policy"], rows["protocol"] = (
        rows["units"].where(rows["units"].isna(), name) for name in ("per_layer", "token")
    )
    sizes = {name: f"predictor_{name}" for name in ("rank", "bits", "groups")}
    made = found["predictors"].rename(columns=sizes)[["model", *PAIR, "kind", *sizes.values()]].drop_duplicates()
    rows = rows.merge(made, how="left")
    names = [
        f"rank {rank:g}, {bits:g} bits"
        for rank, bits in zip(rows["predictor_rank"], rows["predictor_bits"], strict=True)
    ]
    unnamed = rows["predictor"].isna() & rows["predictor_rank"].notna()
    return rows.assign(predictor=rows["predictor"].mask(unnamed, pd.Series(names, rows.index, object)))


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return NAMES.get(value, value) if isinstance(value, str) else f"{value:g}"


def _named(name: str, value: Any) -> str:
    """A value that explains itself, with its name where it does not."""
    alone = name in ("model", "device", "data", "task", "kind", "units", "criterion", "policy", "dtype")
    return _text(value) if alone else f"{name.replace('_', ' ')} {_text(value)}"


def number(value: float, like: float | None = None) -> str:
    """A number with the decimals that give `like`, itself unless note, three digits or more; "-" for none."""
    if pd.isna(value):
        return "-"
    size = abs(value if like is None else like)
    return f"{value:,.{3 if size < 2 else max(0, 3 - len(str(int(size))))}f}"


def _value(row: pd.Series) -> str:
    return number(row["value"])
