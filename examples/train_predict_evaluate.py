"""Trains, predicts and measures from Python, on the demo's synthetic data: minutes on a CPU.

python examples/train_predict_evaluate.py example_output [TRAINER]
"""

import os
import sys
from pathlib import Path


def main(out: Path, trainer: str = "nnUNetTrainerDeconverDemo") -> dict:
    """Writes everything into `out`; returns the summary of the evaluation."""
    # nnU-Net reads its folders when it is imported.
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(out.resolve() / name)
        (out / name).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("nnUNet_n_proc_DA", "2")
    os.environ.setdefault("nnUNet_compile", "f")

    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import run_training

    from nnunet_deconver.demo.phantom import write_dataset
    from nnunet_deconver.demo.small_plans import choose_plans
    from nnunet_deconver.integration.trainers import external_folders, shim_folder
    from nnunet_deconver.metrics.evaluation import evaluate

    os.environ["nnUNet_extTrainer"] = os.pathsep.join(map(str, (shim_folder(), *external_folders())))
    dataset, configuration = "Dataset990_Phantom", "3d_fullres"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    write_dataset(out / "raw" / dataset, training=12, held_out=4)

    extract_fingerprints([990], num_processes=2)
    plan_experiments([990])
    preprocess([990], configurations=[configuration], num_processes=[2])
    plans = choose_plans(out / "preprocessed" / dataset, configuration, device.type)
    run_training("990", configuration, 0, trainer, plans, device=device)

    predictor = nnUNetPredictor(use_mirroring=False, device=device, perform_everything_on_device=device.type == "cuda")
    model = out / "results" / dataset / f"{trainer}__{plans}__{configuration}"
    predictor.initialize_from_trained_model_folder(str(model), use_folds=(0,))
    images, predictions = out / "raw" / dataset / "imagesTs", out / "predictions"
    predictor.predict_from_files(str(images), str(predictions), num_processes_preprocessing=1)

    summary = evaluate(out / "raw" / dataset / "labelsTs", predictions, out / "evaluation", model=model)
    for name, metrics in summary["metrics"].items():
        print(f"{name}: Dice {metrics['dice']['mean']:.3f}")
    return summary


# nnU-Net and evaluate use several processes, which import this file anew.
if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
