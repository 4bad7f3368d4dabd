"""The zoo's target with a fourth layer that does nothing: `python scripts/llamacpp_zoo.py FOLDER [DRAFTER]`.

The zoo's EAGLE-3 drafters read the states after layers 1, 2 and 3 of a target of three layers. llama.cpp does not hand
the last layer's to a drafter (docs/upstream/llamacpp-eagle3.md). A further layer whose output projections are zero adds
nothing to the residual, bit for bit: the target is the same function, its texts are the same, the drafter's weights fit
as they are, and every layer that it reads is below the last. Writes FOLDER/target and FOLDER/draft; the zoo's own
files, and the digest that they go by, stay as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from speceval import zoo

ADDED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
"""What a layer adds to the residual goes through these."""
FOREIGN = ("n_routed_experts", "n_group", "num_nextn_predict_layers")
"""Keys of the zoo's configuration, for its MTP drafters, at which llama.cpp's converter takes it for another model."""


def with_idle_layer(weights: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The target's weights with a copy of its last layer on top that adds nothing."""
    last, idle = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    added = {idle + name[len(last) :]: weight.clone() for name, weight in weights.items() if name.startswith(last)}
    for name in ADDED:
        added[idle + name].zero_()
    return weights | added


def write(folder: Path, drafter: str) -> None:
    """Make both checkpoints."""
    found = zoo.ensure((drafter,))
    shutil.copytree(found[drafter], folder / "draft")
    shutil.copytree(found["target"], folder / "target")
    path = folder / "target" / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in FOREIGN}
    layers = config["num_hidden_layers"]
    path.write_text(json.dumps(config | {"num_hidden_layers": layers + 1}, indent=2))
    file = folder / "target" / "model.safetensors"
    save_file(with_idle_layer(load_file(file), layers), file, metadata={"format": "pt"})


if __name__ == "__main__":
    write(Path(sys.argv[1]), (sys.argv[2:] or ["lk-eagle3"])[0])
