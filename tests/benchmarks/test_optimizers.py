"""The speed benchmark measures ours and torch's on small tensors, and says what it left out."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def test_it_measures_and_writes(tmp_path: Path):
    import optimizers

    wanted = ["ours AdamW fp32", "torch AdamW fused", "adv_optm 2.5.16 AdamW factored"]
    small = ["--sets", "small", "--rounds", "2", "--no-unet", "--no-fidelity"]
    optimizers.main([*small, "--only", *wanted, "--out", str(tmp_path / "result")])
    result = json.loads((tmp_path / "result.json").read_text())
    rows = result["sets"]["small"]["rows"]
    assert set(rows) == {"ours AdamW fp32", "torch AdamW fused"}
    assert rows["ours AdamW fp32"]["state_bytes_per_parameter"] == 8
    # torch keeps a step count for each of the four tensors
    kept = rows["torch AdamW fused"]["state_bytes_per_parameter"] * 9_536
    assert kept == 4 * 9_536 + 4 * 4
    for row in rows.values():
        spread = row["against"]["torch AdamW foreach"]
        assert 0 < spread["p10"] <= spread["median"] <= spread["p90"]
    assert "--peers" in result["sets"]["small"]["skipped"]["adv_optm 2.5.16 AdamW factored"]
    assert "ours AdamW fp32" in (tmp_path / "result.md").read_text()


def test_the_unet_has_the_shapes_of_sdxl():
    from shapes import sdxl_lora_shapes, sdxl_unet_shapes

    shapes = sdxl_unet_shapes()
    assert len(shapes) == 1680
    assert sum(_count(shape) for shape in shapes) == 2_567_463_684
    assert len(sdxl_lora_shapes()) == 1444


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def test_the_state_of_the_unet_is_counted_for_every_storage_there_is():
    from optimizers import unet_state

    found = unet_state()["state"]
    assert found["AdamW fp32"]["bytes_per_parameter"] == 8
    assert found["AdamW factored"]["bytes_per_parameter"] < 0.15


def test_exact_states_are_faithful_and_one_bit_less_so():
    from entries import entries
    from fidelity import fidelity

    every = entries(None)
    exact, factored = (
        fidelity(every[name], steps=6) for name in ("ours AdamW fp32", "ours AdamW factored")
    )
    assert exact["interior"]["lowest"] > 0.9999
    assert 0.3 < factored["interior"]["mean"] < 0.99
    assert len(exact["edges"]) == 2


def test_aims_are_met_or_missed_by_their_figures():
    from aims import evaluate

    against = {"torch AdamW foreach": {"median": 0.4}}
    row = {"against": against, "temporary_bytes": 65 * 2**20}
    result = {
        "sets": {"sdxl": {"rows": {"ours AdamW factored, kernel": row}}},
        "unet": {"state": {"AdamW factored": {"bytes": 346_000_000}}},
        "fidelity": {},
    }
    assert [aim["met"] for aim in evaluate(result)] == [True, False, True]


def test_temporaries_of_torch_are_traced():
    from entries import BASE, entries
    from optimizers import stepper, temporaries

    shape = (64, 64)
    made = stepper(entries(None)[BASE], [shape])
    assert temporaries(made) >= 2 * 64 * 64
