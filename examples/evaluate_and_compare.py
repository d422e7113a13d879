"""Measures two models' predictions of the same cases, and tests whether one is better.

python examples/evaluate_and_compare.py labelsTs predictions_a predictions_b results
"""

import sys
from pathlib import Path

from nnunet_deconver.figures.comparison import compare_models
from nnunet_deconver.metrics.definitions import Settings
from nnunet_deconver.metrics.evaluation import evaluate


def main(labels: Path, predictions: list[Path], out: Path) -> None:
    """Writes an evaluation of each folder of predictions, and their comparison, into `out`."""
    settings = Settings(tolerances=(1.0, 2.0), far=(5.0,))
    evaluations = []
    for folder in predictions:
        summary = evaluate(labels, folder, out / folder.name, settings=settings)
        evaluations.append(out / folder.name)
        for name, metrics in summary["metrics"].items():
            print(f"{folder.name}, {name}: Dice {metrics['dice']['mean']:.3f}, HD95 {metrics['hd95']['mean']:.1f}")
        for case, problem in summary["problems"].items():
            print(f"{folder.name}, {case} could not be measured: {problem}")

    comparison, files = compare_models(evaluations, out / "comparison")
    for row in comparison.differences:
        if row.metric == "dice":
            print(f"{row.of}: {row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}], p = {row.p_holm:.3g}")
    print(f"wrote {len(files)} files to {out / 'comparison'}")


# Measuring uses several processes, which import this file anew.
if __name__ == "__main__":
    first, *others, last = map(Path, sys.argv[1:])
    main(first, others, last)
