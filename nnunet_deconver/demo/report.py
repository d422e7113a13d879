"""The demo's result as a table and a picture."""

import csv
from pathlib import Path

from nnunet_deconver.demo.dataset import RawData
from nnunet_deconver.demo.dice import Dice, case_dice, mean_dice
from nnunet_deconver.integration.datasets import as_labels


def table_rows(dice: Dice, baseline: Dice) -> list[tuple[str, float, float]]:
    """Class, Dice and the best threshold's Dice; the last row has their means."""
    rows = [(name, mean_dice(dice[name].values()), mean_dice(baseline[name].values())) for name in dice]
    return [*rows, ("mean", mean_dice(row[1] for row in rows), mean_dice(row[2] for row in rows))]


def format_table(dice: Dice, baseline: Dice) -> str:
    """The table of Dice to print."""
    rows = table_rows(dice, baseline)
    width = max(len(row[0]) for row in rows)
    lines = [f"{'Dice':<{width}}  prediction  best threshold"]
    lines += [f"{name:<{width}}  {ours:>10.3f}  {threshold:>14.3f}" for name, ours, threshold in rows]
    lines.insert(-1, "-" * len(lines[0]))
    return "\n".join(lines)


def write_table(path: Path, dice: Dice, baseline: Dice) -> None:
    """Writes the table of Dice as CSV, the prediction's Dice of each case included."""
    cases = list(next(iter(dice.values())))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "prediction", "best threshold", *cases])
        for name, *means in table_rows(dice, baseline):
            each = [dice[name][case] if name in dice else case_dice(dice, case) for case in cases]
            writer.writerow([name, *(f"{value:.4f}" for value in (*means, *each))])


def draw_held_out(data: RawData, predictions: Path, dice: Dice, path: Path, title: str) -> None:
    """Draws the best, the median and the worst held-out case.

    Args:
        data: whose held-out cases these are.
        predictions: nnU-Net's, a folder.
        dice: of the predictions.
        path: file to write.
        title: stands on top of the picture.
    """
    from nnunet_deconver.figures import panels

    def row(rank: str, case: str) -> panels.Case:
        image, truth, spacing = data.read_held_out(case)
        labels = data.read_labels(predictions / f"{case}{data.ending}")
        prediction = panels.Prediction(labels, case_dice(dice, case))
        return panels.Case(f"{rank}: {case}", image, truth, {"prediction": prediction}, spacing)

    chosen = panels.best_median_worst({case: case_dice(dice, case) for case in data.cases("Ts")})
    panels.draw_panels(
        [row(rank, case) for case, rank in chosen.items()],
        panels.label_names({name: as_labels(key) for name, key in data.classes.items()}),
        path.with_suffix(""),
        ignore=data.ignore,
        title=title,
        segmentations=True,
        formats=[path.suffix[1:]],
    )
