"""The page of a report: one HTML file with its style and pictures inside."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import nnunet_deconver
from nnunet_deconver.metrics.statistics import RESAMPLES, SEED, SMALLEST_P
from nnunet_deconver.studies.results import LEVEL, ModelComparison, ModelSummary
from nnunet_deconver.studies.study import CROSS_VALIDATION

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 0 auto;
  padding: 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em; overflow-wrap: anywhere; }
h1 { margin-top: .5em; }
p, li, figcaption { max-width: 46rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { background: #f4f4f4; white-space: normal; vertical-align: bottom; }
.text { text-align: left; }
.better { color: #00664b; font-weight: 600; }
.worse { color: #a33d00; font-weight: 600; }
.missing { border-left: 4px solid #d55e00; background: #fdf3ec; padding: .2rem 1rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; flex: 0 1 auto; }
img { max-width: 100%; height: auto; }
figcaption, .note { font-size: .85rem; color: #555; }
summary { cursor: pointer; max-width: 46rem; margin: .5em 0; overflow-wrap: anywhere; }
"""

METHODS = f"""
<p>A difference is a model's mean over cases and seeds minus the reference's, on the cases that all seeds of both have,
and in which all values are defined. In the mean over classes, a case counts with the mean of its classes' defined
values.</p>
<p>The 95 % interval is a bootstrap over cases and trainings: {RESAMPLES} resamples, seed {SEED}. A resample draws
cases, the same for both models, and in every fold seeds, for each model on its own; on test cases a seed is one
training, the ensemble of its folds. Of n cases n - 1 are drawn, of S seeds S - 1, so that the variance is unbiased.
Deviations are spread as Student's distribution is, since few seeds tell little. What differs between trainings from
case to case counts twice, so intervals are rather too wide. With one seed the interval covers cases alone: another
training may differ by more.</p>
<p>p is two-sided and of the same resamples, at least {SMALLEST_P:.1g}, and corrected after Holm for all
comparisons of its metric on this page. &quot;Better&quot; and &quot;worse&quot; ask for a corrected p below {LEVEL}.
&quot;No difference shown&quot; does not say that there is none: the interval says which differences are still
possible.</p>
<p>Means of models, and ± the standard deviation (n - 1) between seeds, are over all cases that the model's seeds have.
Hours are the sum of a training's epochs in nnU-Net's log, mean over trainings; loading and the prediction of held-out
cases are not in them. They are comparable only on one kind of machine. FLOPs are 2 x multiply-adds of predicting a
patch, memory is the estimate for a training step.</p>
"""


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        dataset: it is of.
        on: kind of cases.
        caption: what it shows.
        paths: its files; the PNG stands in the page.
    """

    dataset: str
    on: str
    caption: str
    paths: Sequence[Path]


def render_page(
    title: str,
    answer: str,
    missing: Sequence[str],
    limits: Sequence[str],
    comparisons: Sequence[ModelComparison],
    models: Sequence[ModelSummary],
    pictures: Sequence[Picture],
) -> str:
    """The page as text. It needs no other file, and no network.

    Args:
        title: of the page.
        answer: see `report.answer`.
        missing: what is not finished or failed.
        limits: see `find_limits`.
        comparisons: all of them.
        models: likewise.
        pictures: written already.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    if missing:
        parts.append(f'<div class="missing"><h2>Not finished</h2>{_list(missing)}</div>')
    parts += ["<h2>In short</h2>", *map(_answer, answer.split("\n\n"))]
    if limits:
        parts += ["<h2>Before you believe it</h2>", _list(limits)]
    for dataset, on in dict.fromkeys((model.dataset, model.on) for model in models):
        parts.append(f"<h2>{escape(dataset)}{'' if on == CROSS_VALIDATION else ', test cases'}</h2>")
        here = [row for row in comparisons if (row.dataset, row.on) == (dataset, on)]
        first = {}
        for row in here:
            first.setdefault(row.metric, row.of)
        overall = [row for row in here if row.of == first[row.metric]]
        if overall:
            parts += [f"<h3>Differences to {escape(overall[0].reference)}</h3>", _comparison_table(overall)]
        if len(here) > len(overall):
            by_class = _comparison_table([row for row in here if row.of != first[row.metric]])
            parts.append(f"<details><summary>class by class</summary>{by_class}</details>")
        drawn = [picture for picture in pictures if (picture.dataset, picture.on) == (dataset, on)]
        parts.append(f'<div class="figures">{"".join(map(_figure, drawn))}</div>')
        parts += [
            "<h3>Models and their cost</h3>",
            _model_table([model for model in models if (model.dataset, model.on) == (dataset, on)]),
        ]
    parts += ["<h2>How this was computed</h2>", METHODS]
    parts.append(f'<p class="note">nnunet-deconver {escape(nnunet_deconver.__version__)}</p>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n"
        "</html>\n"
    )


def difference_text(row: ModelComparison) -> str:
    """A difference with its interval."""
    digits = _digits(row.unit)
    found = row.found
    ends = "no interval" if math.isnan(found.low) else f"{found.low:+.{digits}f}, {found.high:+.{digits}f}"
    return f"{found.difference:+.{digits}f} [{ends}]"


def p_text(p: float) -> str:
    """A p-value, rounded."""
    if math.isnan(p):
        return "undefined"
    return "< 0.001" if p < 1e-3 else f"{p:.2g}"


def significant(number: float) -> str:
    """A number with three significant digits, without exponent."""
    if math.isnan(number) or not number:
        return "" if number else "0"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:.{digits}f}"


def times_text(number: float, reference: float | None) -> str:
    """How many times the reference's number it is, in parentheses; nothing where that is not known."""
    return f" ({number / reference:.2f} times)" if reference and not math.isnan(reference) else ""


def _digits(unit: str) -> int:
    return 2 if unit else 4


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _answer(block: str) -> str:
    """The answer about a model: its first line, and the numbers behind it for whoever opens it."""
    first, *others = block.splitlines()
    return (
        f"<details><summary>{escape(first)}</summary>{_list(others)}</details>" if others else f"<p>{escape(first)}</p>"
    )


def _table(rows: Sequence[Mapping[str, str]], texts: int) -> str:
    """A table of rows, header to cell; cells are HTML. The first columns are texts, the others numbers."""

    def cells(tag: str, content: Iterable[str]) -> str:
        tags = [f'{tag} class="text"' if index < texts else tag for index in range(len(rows[0]))]
        return "".join(f"<{start}>{cell}</{tag}>" for start, cell in zip(tags, content, strict=True))

    head = cells("th", map(escape, rows[0]))
    body = "".join(f"<tr>{cells('td', row.values())}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _comparison_table(rows: Sequence[ModelComparison]) -> str:
    return _table(
        [
            {
                "metric": escape(f"{row.metric} [{row.unit}]" if row.unit else row.metric),
                "class": escape(row.of),
                "equal": escape(row.equal),
                "model": escape(row.model),
                "finding": f'<span class="{escape(row.verdict)}">{escape(row.verdict)}</span>',
                "difference [95 %]": difference_text(row) if row.found.cases else "",
                "p, corrected": escape(p_text(row.p_holm)),
                "mean": _number(row.found.mean, row.unit),
                "of the reference": _number(row.found.mean_reference, row.unit),
                "by seed": ", ".join(f"{value:+.{_digits(row.unit)}f}" for value in row.by_seed.values()),
                "seeds, reference's": f"{row.found.seeds}, {row.found.seeds_reference}",
                "folds": str(row.found.folds),
                "cases": str(row.found.cases),
            }
            for row in rows
        ],
        texts=5,
    )


def _model_table(models: Sequence[ModelSummary]) -> str:
    metrics = list(dict.fromkeys(metric for model in models for metric in model.means))
    units = {metric: unit for model in models for metric, unit in model.units.items()}
    return _table(
        [
            {
                "model": escape(model.model),
                "equal": escape(model.equal),
                "seeds": str(model.seeds),
                "folds": str(model.folds),
                "cases": str(model.cases),
                **{
                    f"{metric} [{units[metric]}]" if units[metric] else metric: _mean(model, metric)
                    for metric in metrics
                },
                "parameters / M": significant(model.cost.parameters / 1e6) if model.cost else "",
                "kFLOPs / voxel": significant(model.cost.flops_per_voxel / 1e3) if model.cost else "",
                "memory / GiB": significant(model.cost.memory_bytes / 2**30) if model.cost else "",
                "epochs": "" if math.isnan(model.training.epochs) else f"{model.training.epochs:.4g}",
                "hours a training": significant(model.training.hours),
                "fastest epoch / s": significant(model.training.fastest),
                "median epoch / s": significant(model.training.median),
            }
            for model in models
        ],
        texts=2,
    )


def _mean(model: ModelSummary, metric: str) -> str:
    mean, std = (
        _number(values.get(metric, math.nan), model.units.get(metric, "")) for values in (model.means, model.seeds_stds)
    )
    return f"{mean} ± {std}" if std else mean


def _number(value: float, unit: str) -> str:
    return "" if math.isnan(value) else f"{value:.{_digits(unit)}f}"


def _figure(picture: Picture) -> str:
    path = next(path for path in picture.paths if path.suffix == ".png")
    content, caption = base64.b64encode(path.read_bytes()).decode(), escape(picture.caption)
    # Drawn at 300 dots per inch; shown at most as large as its text reads well.
    return (
        f'<figure><img src="data:image/png;base64,{content}" alt="{caption}" style="width: {_width(path)}px">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _width(path: Path) -> int:
    """Pixels across that a picture of 300 dots per inch takes at 120: the width stands in the PNG's header."""
    return int.from_bytes(path.read_bytes()[16:20], "big") * 120 // 300
