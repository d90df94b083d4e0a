"""Model files that are damaged, do not fit each other, or want to run code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import UNSEEN, Acmsao, refused
from faults.conftest import Spoilt
from safetensors.torch import load_file, save_file

from acmsao_cli.models.causal_lm import chat

pytestmark = pytest.mark.usefixtures("ends")

# How a model is stored: its folder on the shelf, or one file; and which file is spoilt.
WEIGHTS = {
    "lm": "model.safetensors",
    "sdxl": "unet/diffusion_pytorch_model.safetensors",
    "single": "sdxl.safetensors",
}


@pytest.fixture
def train(acmsao: Acmsao, lm: Path, sdxl: Path) -> Callable[..., Any]:
    """Try to train on the spoilt model; unless `whole`, up to the loading of its weights."""

    def run(form: str, *options: str, whole: bool = False) -> Any:
        recipe = lm if form == "lm" else sdxl
        source = "bad/sdxl.safetensors" if form == "single" else "./bad"
        rest = options if whole else (*options, "--dry-run")
        outcome = acmsao("train", str(recipe), "-s", f"model.source={source}", *rest)
        assert not list(Path("runs").glob("*/checkpoints/*"))
        return outcome

    return run


# Bytes of a file that is no sound safetensors


def framed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def entry(begin: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def tensors(data: bytes = b"", **entries: Any) -> Callable[[bytes], bytes]:
    return lambda good: framed(json.dumps(entries).encode(), data)


def one_bit_flipped(good: bytes) -> bytes:
    """In the first name of a tensor after the metadata: another name, or no JSON."""
    place = good.index(b'"dtype"') + 3
    return good[:place] + bytes([good[place] ^ 0x80]) + good[place + 1 :]


def many_tiny(good: bytes) -> bytes:
    one = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return framed(b"{" + b",".join(one % n for n in range(200_000)) + b"}")


def claiming_99_mb(good: bytes) -> bytes:
    return (99 * 10**6).to_bytes(8, "little") + b"{}" + bytes(100)


UNSOUND: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut short": (lambda good: good[: len(good) // 2], "of weights but has"),
    "cut within the header": (lambda good: good[:100], "does not fit in 100 bytes"),
    "one bit flipped": (one_bit_flipped, "its header cannot be read"),
    "no bytes": (lambda good: b"", "only 0 bytes"),
    "length 2^63": (lambda good: (2**63).to_bytes(8, "little") + b"{}" + good, "does not fit in"),
    "99 MB claimed": (claiming_99_mb, "a header of 99000000 bytes does not fit"),
    "many tiny tensors": (many_tiny, "it lists 200000 tensors; at most 100000"),
    "40 MB of header": (
        lambda good: framed(b"{" + b" " * 40_000_000 + b"}"),
        "its header has 40000002 bytes; at most 33554432",
    ),
    "overlap": (tensors(bytes(8), a=entry(0, 8, 2), b=entry(4, 8, 1)), "overlap others or leave"),
    "hole": (tensors(bytes(12), a=entry(0, 4, 1), b=entry(8, 12, 1)), "overlap others or leave"),
    "9 bytes": (lambda good: good[:9], "only 9 bytes"),
    "a list": (lambda good: framed(b"[1, 2]"), "its header is not a table of tensors"),
    "metadata not text": (
        lambda good: framed(b'{"__metadata__": {"a": 1}}'),
        "its metadata are not texts",
    ),
    "unknown dtype": (tensors(bytes(4), a=entry(0, 4, 1, dtype="F7")), "the unknown dtype 'F7'"),
    "no offsets": (tensors(bytes(4), a={"dtype": "F32", "shape": [1]}), "'a' is malformed"),
    "bytes that follow": (tensors(bytes(5), a=entry(0, 4, 1)), "1 bytes follow its last tensor"),
    "zipped pickle": (lambda good: b"PK\x03\x04" + bytes(100), "a pickled PyTorch file"),
    "negative": (tensors(bytes(4), a=entry(-4, 0, 1)), "the entry of 'a' is malformed"),
    "negative shape": (tensors(bytes(4), a=entry(0, 4, -1)), "the entry of 'a' is malformed"),
    "endless shape": (tensors(bytes(4), a=entry(0, 4, *[2**62] * 4000)), "differ"),
    "duplicate": (lambda good: framed(b'{"a": 1, "a": 2}'), "a name stands twice"),
    "deep": (lambda good: framed(b"[" * 10**6), "its header cannot be read"),
    "deep numbers": (lambda good: framed(b"1" * 10**6), "its header"),
    "not UTF-8": (lambda good: framed(b'{"\xff": 1}'), "its header cannot be read"),
    "LFS pointer": (
        lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
        "run `git lfs pull`",
    ),
    "web page": (lambda good: b"<!doctype html><title>404</title>" * 9, "a web page saved under"),
    "renamed pickle": (lambda good: pickle.dumps({"a": 1}, 2) + bytes(99), "a pickled PyTorch"),
    "escapes in a name": (tensors(bytes(4), **{"\x1b[2J\u202e": entry(0, 8, 1)}), "differ"),
}


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize(("spoil", "says"), UNSOUND.values(), ids=UNSOUND)
def test_an_unsound_file_is_refused_by_its_header(
    train: Callable[..., Any],
    copied: Spoilt,
    form: str,
    spoil: Callable[[bytes], bytes],
    says: str,
) -> None:
    file = copied(form) / WEIGHTS[form]
    file.write_bytes(spoil(file.read_bytes()))
    refused(train(form), 3, file.name, says)


# Files that are no files


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("put", [pipe, device, loop, folder])
def test_what_is_no_file_is_not_waited_for(
    train: Callable[..., Any], copied: Spoilt, form: str, put: Callable[[Path], None]
) -> None:
    file = copied(form) / WEIGHTS[form]
    put(file)
    refused(train(form), 3, file.name if form == "single" else "bad")


@pytest.mark.parametrize("form", ["lm", "sdxl"])
@pytest.mark.parametrize("put", [pipe, device, loop])
@pytest.mark.parametrize("name", ["config.json", "tokenizer/tokenizer.json"])
def test_nor_is_a_configuration_that_is_none(
    train: Callable[..., Any], copied: Spoilt, form: str, put: Callable[[Path], None], name: str
) -> None:
    part = copied(form)
    if form == "lm":
        file = part / Path(name).name
    else:
        file = part / (name if "/" in name else f"vae/{name}")
    put(file)
    refused(train(form, whole=True), 3, "bad")


# Weights and configurations that do not belong together


def edit_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(file)
    change(weights)
    save_file({name: one.clone() for name, one in weights.items()}, file, metadata_of(file))


def metadata_of(file: Path) -> dict[str, str]:
    """A single file's settings are in its header."""
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found: dict[str, str] = header.get("__metadata__", {"format": "pt"})
    return found


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def second(weights: dict[str, torch.Tensor]) -> str:
    """A matrix that is nobody's input or output."""
    return [name for name, one in sorted(weights.items()) if one.ndim == 2][3]


def renamed(weights: dict[str, torch.Tensor]) -> None:
    name = second(weights)
    weights[f"{name}s"] = weights.pop(name)


def missing(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(second(weights))


def surplus(weights: dict[str, torch.Tensor]) -> None:
    name = second(weights)
    weights[f"{name.removesuffix('weight')}bias2"] = weights[name].clone()


def reshaped(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name, one in weights.items() if one.ndim == 2 and len(set(one.shape)) > 1)
    weights[name] = weights[name].t().contiguous()


def integers(weights: dict[str, torch.Tensor]) -> None:
    name = second(weights)
    weights[name] = weights[name].to(torch.int64)


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("change", [renamed, missing, surplus, reshaped, integers])
def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(
    train: Callable[..., Any],
    copied: Spoilt,
    form: str,
    change: Callable[[dict[str, torch.Tensor]], None],
) -> None:
    file = copied(form) / WEIGHTS[form]
    edit_weights(file, change)
    refused(train(form), 3, "bad")


CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "one layer more": ("lm", "config.json", {"num_hidden_layers": 3}),
    "one layer less": ("lm", "config.json", {"num_hidden_layers": 1}),
    "other width": ("lm", "config.json", {"intermediate_size": 64}),
    "other vocabulary": ("lm", "config.json", {"vocab_size": 64}),
    "a million layers": ("lm", "config.json", {"num_hidden_layers": 10**6}),
    "endless width": ("lm", "config.json", {"hidden_size": 2**50}),
    "negative width": ("lm", "config.json", {"intermediate_size": -1}),
    "no heads": ("lm", "config.json", {"num_attention_heads": 0}),
    "text for heads": ("lm", "config.json", {"num_attention_heads": "four"}),
    "text for a frequency": ("lm", "config.json", {"rope_parameters": {"rope_theta": "x"}}),
    "wrong architecture": ("lm", "config.json", {"model_type": "gpt2"}),
    "not a language model": ("lm", "config.json", {"model_type": "vit"}),
    "no known model": ("lm", "config.json", {"model_type": "nothing"}),
    "sdxl: one layer more": ("sdxl", "text_encoder/config.json", {"num_hidden_layers": 3}),
    "sdxl: one block more": ("sdxl", "vae/config.json", {"layers_per_block": 2}),
    "sdxl: other width": ("sdxl", "unet/config.json", {"block_out_channels": [8, 16, 64]}),
    "sdxl: a million layers": ("sdxl", "text_encoder/config.json", {"num_hidden_layers": 10**6}),
    "sdxl: a million blocks": ("sdxl", "unet/config.json", {"layers_per_block": 10**6}),
    "sdxl: many transformers": (
        "sdxl",
        "unet/config.json",
        {"transformer_layers_per_block": [1, 10**6, 1]},
    ),
    "sdxl: endless width": ("sdxl", "text_encoder/config.json", {"intermediate_size": 2**50}),
    "sdxl: endless channels": ("sdxl", "vae/config.json", {"block_out_channels": [2**40] * 4}),
    "sdxl: many channels": ("sdxl", "vae/config.json", {"block_out_channels": [8] * 10**5}),
    "sdxl: negative": ("sdxl", "unet/config.json", {"in_channels": -4}),
    "sdxl: no groups": ("sdxl", "unet/config.json", {"norm_num_groups": 0}),
    "sdxl: text for a number": ("sdxl", "vae/config.json", {"latent_channels": "four"}),
    "sdxl: no scale": ("sdxl", "vae/config.json", {"scaling_factor": float("nan")}),
    "sdxl: wrong class": ("sdxl", "vae/config.json", {"_class_name": "AutoencoderTiny"}),
    "sdxl: another pipeline": ("sdxl", "model_index.json", {"_class_name": "FluxPipeline"}),
    "sdxl: list for a mapping": ("sdxl", "scheduler/scheduler_config.json", {"beta_start": [1]}),
    "sdxl: no steps": ("sdxl", "scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
    "sdxl: endless steps": ("sdxl", "scheduler/scheduler_config.json",
                            {"num_train_timesteps": 10**12}),
}  # fmt: skip


@pytest.mark.parametrize(("form", "file", "changes"), CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_does_not_fit_is_refused_before_anything_is_loaded(
    train: Callable[..., Any], copied: Spoilt, form: str, file: str, changes: dict[str, Any]
) -> None:
    edit_json(copied(form) / file, **changes)
    refused(train(form), 3, "bad")


@pytest.mark.parametrize("content", ["{", "[]", "", "\0", "{" * 10**5, '{"a": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("lm", "config.json"),
        ("sdxl", "model_index.json"),
        ("sdxl", "unet/config.json"),
        ("sdxl", "text_encoder/config.json"),
        ("sdxl", "scheduler/scheduler_config.json"),
        ("sdxl", "tokenizer/tokenizer.json"),
    ],
)
def test_broken_json_is_refused_by_name(
    train: Callable[..., Any], copied: Spoilt, form: str, name: str, content: str
) -> None:
    (copied(form) / name).write_text(content)
    refused(train(form), 3, "bad", name.split("/")[0])


@pytest.mark.parametrize("content", ["{", "", "{}", "\0"])
def test_a_broken_tokenizer_of_a_language_model_is_refused(
    train: Callable[..., Any], copied: Spoilt, content: str
) -> None:
    (copied("lm") / "tokenizer.json").write_text(content)
    refused(train("lm", whole=True), 3, "bad", "tokenizer")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("form", WEIGHTS)
def test_weights_that_are_not_finite_are_refused(
    acmsao: Acmsao, train: Callable[..., Any], copied: Spoilt, form: str, value: float
) -> None:
    file = copied(form) / WEIGHTS[form]

    def plant(weights: dict[str, torch.Tensor]) -> None:
        weights[second(weights)][0, 0] = value

    edit_weights(file, plant)
    source = file if form == "single" else "./bad"
    export = ("models", "export", str(source), "out")
    outcome = train("lm", whole=True) if form == "lm" else acmsao(*export)
    refused(outcome, 3, "bad", "1 of its weights are not finite, the first in")
    assert not Path("out").exists()


# Shards


def shard(folder: Path, *names: str) -> None:
    """Split the model's weights among files of these names."""
    weights = load_file(folder / WEIGHTS["lm"])
    (folder / WEIGHTS["lm"]).unlink()
    parts: list[dict[str, torch.Tensor]] = [{} for _ in names]
    for number, (name, one) in enumerate(weights.items()):
        parts[number % len(names)][name] = one
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, {"format": "pt"})
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def without_a_shard(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()


def shard_cut_short(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:-9])


def index_to(name: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder.parent / "secret.safetensors").write_bytes(b"")
        index = folder / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        edit_json(index, weight_map={**weight_map, next(iter(weight_map)): name})

    return spoil


def wrong_shard(folder: Path) -> None:
    """The index says that a tensor is in a file that does not have it."""
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=dict.fromkeys(weight_map, SHARDS[0]))


def twice(folder: Path) -> None:
    """Both shards have everything."""
    everything = {**load_file(folder / SHARDS[0]), **load_file(folder / SHARDS[1])}
    for name in SHARDS:
        save_file(everything, folder / name, {"format": "pt"})


SPOILT_SHARDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (without_a_shard, f"{SHARDS[1]}, which is not there"),
    "cut short": (shard_cut_short, f"{SHARDS[1]} is not a sound"),
    "outside": (index_to("../secret.safetensors"), "not a safetensors file beside it"),
    "absolute": (index_to("/etc/passwd"), "not a safetensors file beside it"),
    "pickled": (index_to("shard.bin"), "not a safetensors file beside it"),
    "a number": (index_to(3), "not a safetensors file beside it"),
    "escapes": (index_to("\x1b[2J.bin"), "not a safetensors file beside it"),
    "tensors elsewhere": (wrong_shard, "bad"),
    "tensors twice": (twice, "bad"),
    "index of nothing": (
        lambda at: edit_json(at / "model.safetensors.index.json", weight_map=[]),
        "no weight_map",
    ),
    "broken index": (
        lambda at: (at / "model.safetensors.index.json").write_text("{"),
        "not sound JSON",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILT_SHARDS.values(), ids=SPOILT_SHARDS)
def test_shards_that_are_not_there_or_not_theirs_are_refused(
    train: Callable[..., Any], copied: Spoilt, spoil: Callable[[Path], None], says: str
) -> None:
    place = copied("lm")
    shard(place, *SHARDS)
    spoil(place)
    refused(train("lm"), 3, says)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "gone.safetensors"])
def test_nor_are_they_in_a_pipeline(train: Callable[..., Any], copied: Spoilt, name: str) -> None:
    file = copied("sdxl") / WEIGHTS["sdxl"]
    (file.parent.parent.parent / "secret.safetensors").write_bytes(file.read_bytes())
    weight_map = dict.fromkeys(load_file(file), name)
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    file.unlink()
    refused(train("sdxl"), 3, "index.json names", name)


# What is not there, and names


@pytest.mark.parametrize(
    "source", ["./nowhere", "no-such/model", "builtin:nothing", "./a.safetensors", "~nobody/x", "/"]
)
def test_a_model_that_is_not_there_leaves_no_run(
    acmsao: Acmsao, lm: Path, sdxl: Path, source: str
) -> None:
    for recipe in (lm, sdxl):
        refused(acmsao("train", str(recipe), "-s", f"model.source={source}"), 3, source[-2:])
    assert not Path("runs").exists()


@pytest.mark.parametrize("config", ["./nowhere", "./empty", "./pipe"])
def test_nor_does_what_describes_a_file_and_does_not(
    train: Callable[..., Any], copied: Spoilt, config: str
) -> None:
    copied("single")
    Path("empty").mkdir()
    os.mkfifo("pipe")
    refused(train("single", "-s", f"model.config={config}"), 3, "model.config", config[2:])


def test_names_of_models_and_runs_do_not_drive_the_terminal(
    acmsao: Acmsao, lm: Path, shelf: Path
) -> None:
    name = "\x1b[2J\x07evil"
    shutil.copytree(shelf / "lm", name)
    recipe = Path(lm).rename(f"{name}.yaml")
    quoted = json.dumps(f"./{name}")
    words = ("train", f"./{recipe.name}", "-s", f"model.source={quoted}", "--dry-run")
    for options in (("-o", f"{name}-out"), ()):
        outcome = acmsao(*words, *options)
        assert outcome.code == 0, outcome.err
        assert "evil" in outcome.out
        assert not UNSEEN.search(outcome.out + outcome.err), ascii(outcome.out)
    Path(name, "config.json").write_text("{")
    refused(acmsao(*words), 3, "evil")


# Code


class Canary:
    """Unpickled, it says so."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("canary",)


PICKLES = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.ckpt", "model.pt", "a.pkl")
OPENED: list[str] | None = None


def note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None:
        OPENED.append(os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else "")


sys.addaudithook(note_opened)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that Python opened."""
    names: list[str] = []
    monkeypatch.setitem(globals(), "OPENED", names)
    return names


def pickle_into(folder: Path) -> None:
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps({"weight": Canary()}, 2))
        torch.save({"weight": Canary()}, folder / f"zipped.{name}")
    if OPENED is not None:
        OPENED.clear()


@pytest.mark.parametrize("form", ["lm", "sdxl"])
def test_pickled_weights_are_refused_unopened(
    train: Callable[..., Any], copied: Spoilt, opened: list[str], form: str
) -> None:
    file = copied(form) / WEIGHTS[form]
    file.unlink()
    pickle_into(file.parent)
    refused(train(form), 3, "can run any code when they are opened")
    assert not Path("canary").exists()
    assert not [name for name in opened if Path(name).suffix in (".bin", ".ckpt", ".pt", ".pkl")]


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
def test_a_pickled_file_is_refused_unopened_whatever_its_name(
    acmsao: Acmsao, sdxl: Path, lm: Path, name: str
) -> None:
    Path(name).write_bytes(pickle.dumps({"weight": Canary()}, 2))
    says = "a pickled PyTorch file" if name.endswith("safetensors") else "can run any code"
    refused(acmsao("train", str(sdxl), "-s", f"model.source=./{name}"), 3, name, says)
    says = "read from a folder" if name.endswith("safetensors") else "can run any code"
    refused(acmsao("train", str(lm), "-s", f"model.source=./{name}"), 3, name, says)
    assert not Path("canary").exists()


@pytest.mark.parametrize("form", ["lm", "sdxl"])
def test_pickles_beside_sound_weights_are_left_alone(
    acmsao: Acmsao, train: Callable[..., Any], copied: Spoilt, opened: list[str], form: str
) -> None:
    place = copied(form)
    for folder in {place, (place / WEIGHTS[form]).parent}:
        pickle_into(folder)
    done = train(form) if form == "lm" else acmsao("models", "export", "./bad", "out")
    assert done.code == 0, done.err
    assert not Path("canary").exists()
    assert not [name for name in opened if Path(name).suffix in (".bin", ".ckpt", ".pt", ".pkl")]


CODE = "import os\nos.mkdir('canary')\n"
AUTO_MAP = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}


def own_model(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="mine", auto_map=AUTO_MAP)


def own_code_of_a_known_model(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map=AUTO_MAP, trust_remote_code=True)


def own_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="Mine",
        auto_map={"AutoTokenizer": ["mine.Mine", None]},
    )


def own_unet(folder: Path) -> None:
    edit_json(folder / "model_index.json", unet=["mine", "Unet"], _class_name=["mine", "Pipeline"])


def own_scheduler(folder: Path) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="mine.Scheduler")


@pytest.mark.parametrize(
    ("form", "spoil", "code"),
    [
        ("lm", own_model, 3),
        ("lm", own_code_of_a_known_model, 0),
        ("lm", own_tokenizer, 3),
        ("sdxl", own_unet, 3),
        ("sdxl", own_scheduler, 3),
    ],
)
def test_code_in_a_model_folder_is_never_run(
    train: Callable[..., Any],
    copied: Spoilt,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    spoil: Callable[[Path], None],
    code: int,
) -> None:
    place = copied(form)
    (place / "mine.py").write_text(CODE)
    (place / "pipeline.py").write_text(CODE)
    spoil(place)
    monkeypatch.setattr("builtins.input", lambda *words: "y")  # as `yes | acmsao train` would say
    outcome = train(form, "-s", "training.steps=1", whole=code != 0)
    assert outcome.code == code, outcome.err
    if code:
        refused(outcome, code, "bad")
    assert not Path("canary").exists()


def test_links_that_go_in_circles_end(train: Callable[..., Any], copied: Spoilt) -> None:
    place = copied("lm")
    (place / "again").symlink_to(place)
    assert train("lm").code == 0
    shutil.rmtree(place)
    place.symlink_to("bad")
    refused(train("lm"), 3, "bad")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for x in range(999999999) %}{% endfor %}", "Range too big"),
        ("{% for", "unexpected"),
        (
            "{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 0.5 seconds",
        ),
    ],
    ids=["division", "range", "syntax", "for-good"],
)
def test_a_faulty_chat_template_is_refused_by_name(
    acmsao: Acmsao,
    lm: Path,
    shelf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    words: str,
) -> None:
    monkeypatch.setattr(chat, "RENDERING_SECONDS", 0.5)
    model = tmp_path / "model"
    shutil.copytree(shelf / "lm", model)
    (model / "chat_template.jinja").write_text(template)
    outcome = acmsao("train", str(lm), "-s", f"model.source={model}")
    refused(outcome, 3, "chat template is faulty", words)
