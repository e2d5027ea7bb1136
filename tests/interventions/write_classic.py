"""Writes `classic/`: an intervention of every class as the library saved it before operations and subspaces were apart.

Kept for the record; not a test. It was run at ccb225a, and `--check` compares with what is there, bit for bit: right on
the machine that wrote it, as products of matrices are rounded otherwise on others.

    PYTHONPATH=.:src python tests/interventions/write_classic.py [--check]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.storage.kit import PARTS, WIDTH, activations, contents, examples, intervene, mlp, shaken
from torch import Tensor

from align_transformers import interventions as library
from align_transformers.interventions import Intervention
from align_transformers.storage import load, save

FOLDER = Path(__file__).parent / "classic"
VALUES = "values.safetensors"
BATCH, UNITS = 3, 2
Choice = tuple[tuple[int, ...], ...] | None


def more() -> list[Intervention]:
    """Return what `examples` has none of: units side by side, numbers of coordinates, other operations."""
    states, labels = activations()
    wide = {"embed_dim": UNITS * WIDTH, "keep_last_dim": False, "subspace_partition": PARTS}
    rank = {"low_rank_dimension": 4}
    rows = torch.randn(60, UNITS * WIDTH)
    made: list[Intervention] = [
        kind(**wide) for kind in (library.VanillaIntervention, library.AdditionIntervention, library.ZeroIntervention)
    ]
    made += [
        library.NoiseIntervention(seed=3, **wide),
        library.MeanIntervention(activations=rows, **wide),
        library.CollectIntervention(**wide),
        library.RotatedSpaceIntervention(embed_dim=WIDTH, interchange_dim=2),
        library.LowRankRotatedSpaceIntervention(**wide, **rank),
        library.LowRankRotatedSpaceIntervention(embed_dim=WIDTH, **rank, interchange_dim=2),
        library.BoundlessRotatedSpaceIntervention(**wide),
        library.SigmoidMaskRotatedSpaceIntervention(**wide),
        library.SigmoidMaskIntervention(**wide),
        library.SigmoidMaskIntervention(embed_dim=WIDTH, temperature=0.3, interchange_dim=4),
        library.PCARotatedSpaceIntervention.fit(rows, 5, keep_last_dim=False, subspace_partition=PARTS),
        library.LoreftIntervention(**wide, **rank),
        library.DireftIntervention(**wide, **rank),
        library.ErasureIntervention.fit(states, torch.arange(len(states)) % 4, subspace_partition=[[0, 1], [1, 3]]),
    ]
    for operation in ("add", "swap", "ablate"):
        for kind in (library.DifferenceOfMeansIntervention, library.LinearProbeIntervention):
            made.append(kind.fit(states, labels, operation=operation, strength=0.7, keep_mean=operation == "ablate"))
    dictionary = {"embed_dim": WIDTH, "latent_dim": 9, "value": 0.3, "subspace_partition": PARTS}
    for operation in ("swap", "add", "ablate", "clamp"):
        for kind in (library.AutoencoderIntervention, library.JumpReLUAutoencoderIntervention):
            made += [kind(**dictionary, operation=operation, include_error=keeps) for keeps in (True, False)]
    return [shaken(one) for one in made]


def inputs() -> dict[str, Tensor]:
    """Return base and source of each dtype, units one by one."""
    drawn = torch.Generator().manual_seed(4)
    made = {name: torch.randn(BATCH, UNITS, WIDTH, generator=drawn) for name in ("base", "source")}
    return {f"{name}.{dtype}": value.to(dtype) for name, value in made.items() for dtype in DTYPES}


DTYPES = (torch.float32, torch.bfloat16)


def choices(one: Intervention) -> list[Choice]:
    if isinstance(one, library.StackedLowRankRotatedSpaceIntervention):
        return [((2,), (0,), (1,))]
    return [None] if one.partition is None else [None, ((0,), (1,), (0,)), ((1,), (0,), (1,))]


def outputs(interventions: list[Intervention], given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield for every intervention, dtype and choice what it makes of the inputs."""
    for number, one in enumerate(interventions):
        for dtype in DTYPES:
            base, source = (given[f"{name}.{dtype}"] for name in ("base", "source"))
            if not one.keep_last_dim:
                base, source = base.flatten(1), source.flatten(1)
            for index, choice in enumerate(choices(one)):
                if isinstance(one, library.CollectIntervention) and choice is not None:
                    choice = ((0,),) * BATCH  # equal sizes
                with torch.no_grad():
                    yield f"{number}.{dtype}.{index}", one(base, source, choice).clone().contiguous()


def loaded(folder: Path = FOLDER) -> list[Intervention]:
    config: Any = load(folder, model=mlp()).config
    return [one.intervention for one in config.representations]


def main() -> None:
    torch.set_num_threads(1)
    given = inputs()
    if "--check" in sys.argv:
        kept, now = load_file(FOLDER / VALUES), dict(outputs(loaded(), given))
        wrong = [name for name, value in now.items() if not torch.equal(value, kept[name])]
        assert set(kept) == set(now) | set(given)
        sys.exit(f"of {len(now)} values {len(wrong)} differ: {wrong}" if wrong else 0)
    made = [one for ones in examples().values() for one in ones]
    made += more()
    with tempfile.TemporaryDirectory() as scratch:  # saved beside, as a folder of the library holds nothing else
        folder = save(contents(intervene(made, mlp())), Path(scratch) / "classic")
        record = json.loads((folder / "intervention.json").read_text())
        (FOLDER / "intervention.json").write_text(json.dumps(record) + "\n")  # without its indents: they are half of it
        (FOLDER / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    save_file(given | dict(outputs(loaded(), given)), FOLDER / VALUES)


if __name__ == "__main__":
    main()
