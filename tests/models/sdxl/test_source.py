"""Foreign models are opened exactly or refused with the reason; hostile ones run nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from micro.hub import fetched, serve
from micro.sdxl import RecipeFor, Widths, examples
from safetensors.torch import load_file, save_file
from torch import Tensor

from acmsao_cli.errors import ConfigError, ModelError, OutputError
from acmsao_cli.models.safetensors_header import read_header
from acmsao_cli.models.sdxl.clip_tokenizer import clip_tokenizers
from acmsao_cli.models.sdxl.components import CLASSES, empty_component
from acmsao_cli.models.sdxl.convert import export_model
from acmsao_cli.models.sdxl.family import FAMILY
from acmsao_cli.models.sdxl.layout import places
from acmsao_cli.models.sdxl.shapes import derive_configs

CPU = torch.device("cpu")

# Stable Diffusion XL 1.0, as published.
SDXL: dict[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "in_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "hidden_act": "quick_gelu",
        "vocab_size": 49408,
        "projection_dim": 768,
        "max_position_embeddings": 77,
    },
    "text_encoder_2": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "hidden_act": "gelu",
        "vocab_size": 49408,
        "projection_dim": 1280,
        "max_position_embeddings": 77,
    },
}
PUBLISHED_COUNTS = {
    "unet": 2_567_463_684,
    "vae": 83_653_863,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
}


@pytest.fixture
def copy(micro: Path, tmp_path: Path) -> Path:
    """The micro SDXL's folder, to be damaged."""
    return Path(shutil.copytree(micro, tmp_path / "copy"))


@pytest.fixture(scope="session")
def single(micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro SDXL as one file."""
    (file,) = export_model(str(micro), tmp_path_factory.mktemp("single"), "single-file")
    return file


def open_it(recipe: Any) -> Any:
    return FAMILY.open(recipe, CPU, torch.float32)


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_shapes_alone_give_the_published_configuration_of_sdxl() -> None:
    stored: dict[str, tuple[int, ...]] = {}
    for component in CLASSES:
        module = empty_component(component, SDXL[component], Path("sdxl"))
        shapes = {name: tuple(one.shape) for name, one in module.named_parameters()}
        assert sum(one.numel() for one in module.parameters()) == PUBLISHED_COUNTS[component]
        for name, place in places(component, SDXL[component], shapes).items():
            stored[place.key] = place.stored_shapes(shapes[name])[0]
    assert len([name for name in stored if name.startswith("model.diffusion_model.")]) == 1680
    assert stored["conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight"] == (
        3840,
        1280,
    )
    derived = derive_configs(stored, Path("sdxl.safetensors"))
    for component, config in SDXL.items():
        found = {key: derived[component].get(key) for key in config}
        assert found == config
    heads = derived["unet"]["attention_head_dim"]
    assert [width // count for width, count in zip((320, 640, 1280), heads, strict=True)] == [
        64
    ] * 3


def test_clips_vocabulary_gives_the_published_ids() -> None:
    first, second = clip_tokenizers()
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert first("a photo of a cat").input_ids == second("a photo of a cat").input_ids == ids
    padded = [tok("cat", padding="max_length").input_ids[-1] for tok in (first, second)]
    assert padded == [49407, 0]


def plain_file(single: Path, target: Path, drop: str = "", **more: Tensor) -> Path:
    """The single file as other programs write it: weights, and nothing in the header."""
    weights = {name: one for name, one in load_file(single).items() if not drop or drop not in name}
    save_file(weights | more, target)
    return target


def test_a_foreign_single_file_with_its_folder_beside_is_read_exactly(
    micro: Path, single: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    extra = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77),
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
        "v_pred": torch.zeros(0),
    }
    plain_file(single, tmp_path / "model.safetensors", **extra)
    ignore = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(micro, tmp_path / "model", ignore=ignore)
    recipe = recipe_for(tmp_path / "model.safetensors")
    trainee = open_it(recipe)
    original = open_it(recipe_for(micro))
    for component in CLASSES:
        theirs = original.parts.module(component).state_dict()
        for name, weight in trainee.parts.module(component).state_dict().items():
            assert torch.equal(weight, theirs[name]), name
    assert trainee.diffusion.prediction == "v_prediction"
    assert str(tmp_path / "model") in FAMILY.facts(recipe).details["configuration"]


def test_a_foreign_single_file_whose_vocabulary_is_unknown_is_refused_with_a_way_out(
    single: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    file = plain_file(single, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="vocabulary") as caught:
        FAMILY.facts(recipe_for(file))
    assert "folder" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("first_stage_model.", "it has no vae"),
        ("conditioner.", "it has no text_encoder, text_encoder_2"),
        ("decoder.conv_in", "incomplete"),
    ],
)
def test_an_incomplete_single_file_is_refused_by_what_is_missing(
    micro: Path, single: Path, recipe_for: RecipeFor, tmp_path: Path, drop: str, message: str
) -> None:
    plain_file(single, tmp_path / "m.safetensors", drop)
    shutil.copytree(micro, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match=message):
        FAMILY.facts(recipe_for(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lora_unet_x.lora_down.weight"], "is a LoRA"),
        (["unet.a.lora_A.weight"], "is a LoRA"),
        (["cond_stage_model.a", "model.diffusion_model.b"], r"SD 1\.x or 2\.x"),
        (["down_blocks.0.resnets.0.conv1.weight"], "component of a diffusers folder"),
        (["anything"], "not a whole SDXL"),
    ],
)
def test_another_kind_of_file_is_told(
    recipe_for: RecipeFor, tmp_path: Path, names: list[str], message: str
) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=message):
        FAMILY.facts(recipe_for(tmp_path / "m.safetensors"))


def test_a_surplus_weight_inside_a_component_is_refused(
    micro: Path, single: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    extra = {"model.diffusion_model.input_blocks.9.0.op.weight": torch.zeros(1)}
    plain_file(single, tmp_path / "m.safetensors", **extra)
    shutil.copytree(micro, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match="belongs to no part"):
        FAMILY.facts(recipe_for(tmp_path / "m.safetensors"))


def test_a_header_cannot_write_outside_its_settings(
    single: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    hostile = {"acmsao.settings": json.dumps({"../../escaped.json": "{}"})}
    save_file(load_file(single), tmp_path / "m.safetensors", hostile)
    with pytest.raises(ModelError, match="unknown setting"):
        FAMILY.facts(recipe_for(tmp_path / "m.safetensors"))


def test_facts_read_headers_and_configurations_only(
    copy: Path, recipe_for: RecipeFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acmsao_cli.models.sdxl import folder

    monkeypatch.setattr(folder, "load_component", lambda *_: pytest.fail("weights were read"))
    facts = FAMILY.facts(recipe_for(copy))
    modules = {name: empty_component(name, config, copy) for name, config in configs(copy).items()}
    counted = {name: sum(p.numel() for p in one.parameters()) for name, one in modules.items()}
    assert dict(facts.parameters) == counted
    assert facts.kind == "folder"


def configs(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads((folder / name / "config.json").read_text()) for name in CLASSES}


def test_a_half_precision_variant_is_read_where_there_is_no_other(
    copy: Path, recipe_for: RecipeFor
) -> None:
    for file in copy.rglob("*.safetensors"):
        weights = {name: one.half() for name, one in load_file(file).items()}
        file.unlink()
        save_file(weights, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
    trainee = open_it(recipe_for(copy))
    assert next(trainee.parts.unet.parameters()).dtype == torch.float32


@pytest.mark.parametrize("halved", [(), ("unet",), tuple(CLASSES)], ids=str)
def test_of_the_hub_halves_are_fetched_where_there_is_no_other(
    copy: Path,
    recipe_for: RecipeFor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    halved: tuple[str, ...],
) -> None:
    for component in CLASSES:
        (file,) = (copy / component).glob("*.safetensors")
        shutil.copy(file, file.with_name(f"{file.stem}.fp16.safetensors"))
        if component in halved:
            file.unlink()
    cache = tmp_path / "cache"
    serve(copy, cache, monkeypatch)
    FAMILY.facts(recipe_for("owner/name"))
    halves = {name.split("/")[0] for name in fetched(cache) if "fp16" in name}
    assert halves == set(halved)


def test_old_clip_names_are_read(copy: Path, recipe_for: RecipeFor, micro: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"
    names = load_file(file)
    save_file({f"text_model.{name}": one for name, one in names.items()}, file, {"format": "pt"})
    theirs = open_it(recipe_for(micro)).parts.text_encoder.state_dict()
    for name, weight in open_it(recipe_for(copy)).parts.text_encoder.state_dict().items():
        assert torch.equal(weight, theirs[name])


def remove_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    remove_weights(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04N.")


def cut_weights(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def drop_weight(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.popitem()
    save_file(weights, file, {"format": "pt"})


def other_class(folder: Path) -> None:
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")


def no_second_encoder(folder: Path) -> None:
    edit_json(folder / "model_index.json", text_encoder=[None, None])


def no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def broken_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")


def own_code(folder: Path) -> None:
    edit_json(folder / "model_index.json", tokenizer=["evil", "os"])


def endless_layers(folder: Path) -> None:
    edit_json(folder / "text_encoder_2" / "config.json", num_hidden_layers=10**6)


def other_width(folder: Path) -> None:
    edit_json(folder / "unet" / "config.json", cross_attention_dim=48)


def inpainting(folder: Path) -> None:
    edit_json(folder / "unet" / "config.json", in_channels=9)


def no_size_conditions(folder: Path) -> None:
    edit_json(folder / "unet" / "config.json", addition_embed_type=None)


def unknown_prediction(folder: Path) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="flow")


def another_vae(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", _class_name="AutoencoderTiny")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (remove_weights, r"has no diffusion_pytorch_model\.safetensors"),
    "pickled weights": (pickle_weights, "run any code"),
    "weights cut short": (cut_weights, "not a sound safetensors"),
    "a weight missing": (drop_weight, "the weight files lack 1 tensor"),
    "another pipeline": (other_class, "not an SDXL pipeline"),
    "refiner": (no_second_encoder, "has no text_encoder"),
    "no scheduler": (no_scheduler, "scheduler is missing"),
    "broken JSON": (broken_json, "not sound JSON"),
    "own code": (own_code, "not a tokenizer of transformers"),
    "a million layers": (endless_layers, "at most 256"),
    "widths that differ": (other_width, "cross attention"),
    "inpainting": (inpainting, "latents"),
    "no size conditions": (no_size_conditions, "no size conditioning"),
    "unknown prediction": (unknown_prediction, "'flow'"),
    "another VAE": (another_vae, "AutoencoderTiny"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_with_the_reason(
    copy: Path, recipe_for: RecipeFor, name: str
) -> None:
    damage, message = BROKEN[name]
    damage(copy)
    with pytest.raises(ModelError, match=message):
        open_it(recipe_for(copy))


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path, recipe_for: RecipeFor) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        FAMILY.facts(recipe_for(tmp_path))


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("data", {"bucket_step": 12}, "data.bucket_step"),
        ("data", {"buckets": False, "resolution": 60}, "data.resolution"),
        ("samples", {"prompts": ["a"], "width": 65}, "samples.width"),
    ],
)
def test_sizes_that_latents_cannot_have_are_refused(
    micro: Path, recipe_for: RecipeFor, section: str, values: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as caught:
        FAMILY.facts(recipe_for(micro, **{section: values}))
    assert f"--set {key}=" in (caught.value.hint or "")


def test_weights_in_memory_do_not_change_with_the_file(copy: Path, recipe_for: RecipeFor) -> None:
    trainee = open_it(recipe_for(copy, method={"kind": "full"}))
    before = {name: one.clone() for name, one in trainee.parts.unet.named_parameters()}
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(bytes(1000))
    for name, one in trainee.parts.unet.named_parameters():
        assert torch.equal(one, before[name])


def test_the_preview_shows_size_and_caption_and_what_is_cut(
    recipe_for: RecipeFor, micro: Path
) -> None:
    recipe, example = recipe_for(micro, data={"buckets": False}), examples()[2]
    long = replace(example, caption="red " * 80)
    first, second = FAMILY.preview(recipe, [example, long])
    assert first == "c.png: 160 x 80 -> 64 x 64 (kept 50%)\n  blue round"
    assert second.endswith("cut to 77 of its 82 tokens")


def test_an_export_overwrites_nothing(micro: Path, copy: Path) -> None:
    with pytest.raises(OutputError, match="there already"):
        export_model(str(micro), copy)
    assert (copy / "unet" / "config.json").is_file()


def test_an_export_keeps_the_dtypes_it_finds(copy: Path, tmp_path: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: one.bfloat16() for name, one in load_file(file).items()}, file)
    (single,) = export_model(str(copy), tmp_path / "out", "single-file")
    tensors = read_header(single).tensors
    assert tensors["model.diffusion_model.out.2.bias"].dtype == "BF16"
    assert tensors["first_stage_model.decoder.conv_in.bias"].dtype == "F32"


def test_a_picture_that_the_vae_cannot_encode_is_named(copy: Path, recipe_for: RecipeFor) -> None:
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.bias"].fill_(3e38)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"a\.png"):
        open_it(recipe_for(copy)).encode(examples()[:1])


def test_other_widths_open_on_every_device_alike(
    folder_of: Callable[[Widths], Path], recipe_for: RecipeFor
) -> None:
    folder = folder_of(Widths(unet=(16, 24, 40), heads=(2, 3, 5), text=(32, 32), vae=(4, 8, 12)))
    recipe = recipe_for(folder, data={"bucket_step": 4})
    trainee = open_it(recipe)
    batch = trainee.meta_batch(1)
    assert batch.inputs["latents"].shape[-2:].numel() == 16 * 16
    assert torch.isfinite(trainee.loss(batch))


def test_a_folder_that_is_named_describes_a_bare_single_file(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    [bare] = export_model(str(micro), tmp_path / "elsewhere", "single-file")
    save_file(load_file(bare), bare)  # drops the settings from its header
    with pytest.raises(ModelError) as error:
        FAMILY.facts(recipe_for(bare))
    assert "model.config" in str(error.value.hint)
    recipe = recipe_for(bare, model={"config": str(micro)})
    trainee = FAMILY.open(recipe, CPU, torch.float32)
    plain = FAMILY.open(recipe_for(micro), CPU, torch.float32)
    weights = dict(plain.parts.unet.named_parameters())
    for name, parameter in trainee.parts.unet.named_parameters():
        assert torch.equal(parameter, weights[name])
    with pytest.raises(ConfigError, match="describes single files"):
        FAMILY.facts(recipe_for(micro, model={"config": str(micro)}))
    with pytest.raises(ModelError, match="has no model_index"):
        FAMILY.facts(recipe_for(bare, model={"config": str(tmp_path)}))


def test_the_files_that_decide_are_those_that_are_read(
    copy: Path, single: Path, tmp_path: Path, recipe_for: RecipeFor
) -> None:
    of_folder = FAMILY.files(recipe_for(copy))
    for component in CLASSES:
        assert f"{component}/config.json" in of_folder
        assert [name for name in of_folder if name.startswith(f"{component}/")][1:] != []
    assert {"model_index.json", "scheduler/scheduler_config.json"} <= of_folder.keys()
    assert all(path == copy / name for name, path in of_folder.items())
    renamed = tmp_path / "renamed.safetensors"
    shutil.copy(single, renamed)
    assert FAMILY.files(recipe_for(renamed)) == {"model.safetensors": renamed}
    bare = plain_file(single, tmp_path / "bare.safetensors")
    named = FAMILY.files(recipe_for(bare, model={"config": str(copy)}))
    assert named.pop("model.safetensors") == bare
    assert "config/unet/config.json" in named
    assert not [name for name in named if name.endswith(".safetensors")]
