"""Plans for a study of networks on the same patches: other networks in the place of the one of nnU-Net's plans.

    nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres
    nnUNetv2_plan_experiment -d 4 -gpu_memory_target 0.06 -overwrite_plans_name nnUNetPlans_60MB
    python benchmarks/studies/prepare.py Dataset004_Hippocampus 3d_fullres nnUNetPlans_60MB --features 16

    nnUNetv2_plan_and_preprocess -d 21 -c 2d
    nnUNetv2_plan_experiment -d 21 -gpu_memory_target 0.06 -overwrite_plans_name nnUNetPlans_60MB
    python benchmarks/studies/prepare.py Dataset021_DRIVE 2d nnUNetPlans_60MB --features 16

    export nnUNet_extTrainer=benchmarks/studies/trainers
    for name in hippocampus hippocampus_recipe drive drive_recipe; do
      nnunet-deconver study benchmarks/studies/$name.toml -o ${name}_study --workers 2
      python benchmarks/keep_study.py ${name}_study
    done

prepare.py writes plans beside the others in nnUNet_preprocessed: `<plans>_16features` (nnU-Net's own network with so
many features in its first stage), `<plans>_16features_ResEnc` (nnU-Net's residual encoder, with its blocks per stage)
and `<plans>_16features_DeconverDTC` (Deconver with DTC and the head `norm`). Patch, batch, stages and strides stay, and
so does the preprocessed data, which is that of nnUNetPlans.
"""

import argparse
import copy
import json
import os
from pathlib import Path

from nnunet_deconver.networks.architecture import deconver_architecture
from nnunet_deconver.networks.backbones import with_components

# Of nnU-Net's planner for residual encoders.
BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6)


def residual(architecture: dict) -> dict:
    """nnU-Net's ResidualEncoderUNet on the stages of its PlainConvUNet."""
    entry = copy.deepcopy(architecture)
    kwargs = entry["arch_kwargs"]
    stages = kwargs["n_stages"]
    del kwargs["n_conv_per_stage"]
    kwargs["n_blocks_per_stage"] = list(BLOCKS[:stages])
    kwargs["n_conv_per_stage_decoder"] = [1] * (stages - 1)
    entry["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    return entry


def deconver_with_dtc(architecture: dict) -> dict:
    """Deconver on these stages, with DTC and a norm before each head."""
    return with_components(
        deconver_architecture(architecture), upsampling={"name": "dtc"}, segmentation_head={"name": "norm"}
    )


def with_features(architecture: dict, features: int) -> dict:
    """The same network with so many features in its first stage, and as many times fewer in the others."""
    entry = copy.deepcopy(architecture)
    kwargs = entry["arch_kwargs"]
    kwargs["features_per_stage"] = [
        each * features // kwargs["features_per_stage"][0] for each in kwargs["features_per_stage"]
    ]
    return entry


NETWORKS = {"": copy.deepcopy, "_ResEnc": residual, "_DeconverDTC": deconver_with_dtc}


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("plans")
    parser.add_argument("--features", type=int, required=True, help="of the first stage; nnU-Net has 32")
    args = parser.parse_args()
    folder = Path(os.environ["nnUNet_preprocessed"]) / args.dataset
    plans = json.loads((folder / f"{args.plans}.json").read_text())
    configuration = plans["configurations"][args.configuration]
    # What it preprocesses is what nnU-Net's default plans do.
    configuration["data_identifier"] = f"nnUNetPlans_{args.configuration}"
    plans["configurations"] = {args.configuration: configuration}
    architecture = with_features(configuration["architecture"], args.features)
    for name, build in NETWORKS.items():
        plans["plans_name"] = f"{args.plans}_{args.features}features{name}"
        configuration["architecture"] = build(architecture)
        (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans, indent=2))
        print(f"wrote {folder / plans['plans_name']}.json")


if __name__ == "__main__":
    main()
