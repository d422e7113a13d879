"""The commands that train and measure a preset as its source did, as far as nnU-Net goes."""

from collections.abc import Sequence

from nnunet_deconver.plans.presets import ITERATIONS_PER_EPOCH, Preset


def training_length(preset: Preset) -> str | None:
    """How long the published training is, with the arithmetic; None where that is not printed."""
    if preset.training is None:
        return None
    assert preset.iterations is not None and preset.nnunet_epochs is not None  # where there is a training, there are
    steps = f"{round(preset.iterations):,} iterations"
    if "epochs" in preset.training:
        images = f"{preset.training['images']:,} images ({preset.training['images_are']})"
        steps = f"{preset.training['epochs']} epochs x {images} / batch {preset.batch_size} = {steps}"
    exact = preset.iterations == preset.nnunet_epochs * ITERATIONS_PER_EPOCH
    return f"{steps} = {'' if exact else 'about '}{preset.nnunet_epochs} nnU-Net epochs of {ITERATIONS_PER_EPOCH}"


def commands(
    preset: Preset, dataset: str, plans_name: str, trainer: str | None, unprocessed: Sequence[str] = ()
) -> list[str]:
    """The commands that reproduce a preset's row on a dataset, in their order.

    Args:
        preset: the preset.
        dataset: full name of the dataset.
        plans_name: of the plans made from the preset.
        trainer: where the preset names none; None for nnU-Net's own.
        unprocessed: configurations that are not preprocessed yet.
    """
    number, configuration = int(dataset[7:10]), preset.configuration
    trainer = preset.trainer_name or trainer
    options = f"-p {plans_name}" + (f" -tr {trainer}" if trainer else "")
    lines = []
    if unprocessed:
        lines.append(f"nnUNetv2_preprocess -d {number} -plans_name {plans_name} -c {' '.join(unprocessed)}")
    lines.append(f"nnunet-deconver summary -d {number} -p {plans_name} -c {configuration}")
    folds = preset.folds or {"number": 1}
    trained = folds.get("trained", range(folds["number"]))
    # Five random ones nnU-Net makes by itself.
    if folds.get("stratified") or (preset.folds and folds["number"] != 5):
        lines.append(f"nnunet-deconver splits -d {number} --folds {folds['number']}")
    lines += [f"nnUNetv2_train {number} {configuration} {fold} {options}" for fold in trained]
    if preset.evaluation is None:
        return lines
    model = f"$nnUNet_results/{dataset}/{trainer or 'nnUNetTrainer'}__{plans_name}__{configuration}"
    like = f"--like {preset.evaluation['like']}"
    if preset.evaluation["on"] == "folds":
        return [*lines, f"nnunet-deconver evaluate --model {model} -o evaluation_{preset.name} {like}"]
    test = f"$nnUNet_raw/{dataset}"
    checkpoint = f" -chk {preset.evaluation['checkpoint']}" if "checkpoint" in preset.evaluation else ""
    together = preset.evaluation["on"] == "test_ensemble"
    for name, used in [("", trained)] if together else [(f"_fold_{fold}", [fold]) for fold in trained]:
        predictions = f"predictions_{preset.name}{name}"
        lines += [
            f"nnUNetv2_predict -i {test}/imagesTs -o {predictions} -d {number} -c {configuration} "
            f"-f {' '.join(map(str, used))} {options}{checkpoint}",
            f"nnunet-deconver evaluate {test}/labelsTs {predictions} --model {model} "
            f"-o evaluation_{preset.name}{name} {like}",
        ]
    return lines


def printed_row(preset: Preset) -> str | None:
    """What the source prints of it, in a line; None where it prints nothing."""
    if not preset.published:
        return None
    units = {"parameters_M": "M parameters", "kflops_per_voxel": "kFLOPs / voxel", "gflops": "GFLOPs"}
    parts = [f"{preset.published[key]} {unit}" for key, unit in units.items() if key in preset.published]
    parts += [f"{name} {value}" for name, value in preset.published.get("scores", {}).items()]
    table = f"table {preset.published['table']}: " if "table" in preset.published else ""
    return table + ("; ".join(parts))
