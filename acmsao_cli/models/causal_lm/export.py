"""The files a training leaves, each loaded back with the library it is for and compared."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from acmsao_cli import builtin
from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.errors import OutputError
from acmsao_cli.models.base import Exported, TrainingFacts
from acmsao_cli.models.causal_lm.sample import stop_ids
from acmsao_cli.models.causal_lm.source import Source, build_without_weights
from acmsao_cli.models.dtypes import DTYPES
from acmsao_cli.models.lora import ADAPTER
from acmsao_cli.models.merging import merged_weights
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.privacy import at_home
from acmsao_cli.writing import staged

PREFIX = "base_model.model."
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Work:
    """What an export writes: the trained model, and what is said about it."""

    recipe: CausalLmRecipe
    model: Any
    tokenizer: Any
    source: Source
    facts: TrainingFacts


def _adapter(work: Work, directory: Path) -> Exported:
    """A PEFT adapter folder, compared with what `PeftModel.from_pretrained` makes of it."""
    folder = directory / "peft"
    model, source, recipe, facts = work.model, work.source, work.recipe, work.facts
    weights = {
        PREFIX + name: _cast(tensor, recipe.output.dtype)
        for name, tensor in _adapter_weights(model).items()
    }
    header = {"format": "pt"}
    if recipe.output.metadata:
        header["acmsao"] = json.dumps(describe(facts, recipe))
    with staged(folder) as stage:
        stage.mkdir()
        _adapter_config(model, source, recipe).save_pretrained(stage)
        save_file(weights, stage / "adapter_model.safetensors", metadata=header)
        _write_card(stage, facts, recipe, library="peft")
    difference = _largest_difference(weights, _read_adapter(folder, source), folder)
    return Exported(folder, "peft", "PeftModel.from_pretrained", difference)


def _model(work: Work, directory: Path) -> Exported:
    """The trained model as a transformers folder."""
    model = work.model
    weights = {
        name: _cast(tensor, work.recipe.output.dtype)
        for name, tensor in (*model.named_parameters(), *_saved_buffers(model))
    }
    return _write_model(work, model, weights, directory / "transformers", "transformers")


def _merged(work: Work, directory: Path) -> Exported:
    """The base with the adapters folded in, as a transformers folder.

    A shell without weights is saved in the trained model's place: transformers would write only
    the adapters of that, and call it quantised. A tied head that was adapted is tied no more.
    """
    model, dtype = work.model, work.recipe.output.dtype
    rounded = DTYPES.get(dtype, model.dtype)
    weights = {n: one.to("cpu", rounded).contiguous() for n, one in merged_weights(model)}
    weights |= {name: _cast(buffer, dtype) for name, buffer in _saved_buffers(model)}
    shell = build_without_weights(work.source, model.dtype)
    shell.generation_config = model.generation_config
    head = next(n for n, module in shell.named_modules() if module is shell.get_output_embeddings())
    if f"{head}.weight" in weights:
        shell.config = copy.deepcopy(shell.config)
        shell.config.tie_word_embeddings = False
        shell.config.get_text_config().tie_word_embeddings = False
    return _write_model(work, shell, weights, directory / "merged", "merged")


def _write_model(
    work: Work, model: Any, weights: Mapping[str, Tensor], folder: Path, name: str
) -> Exported:
    """A transformers folder with tokenizer, compared with what `from_pretrained` makes of it."""
    with staged(folder) as stage:
        stage.mkdir()
        with quiet_libraries():
            _save_model(model, work.tokenizer, weights, stage)
        _write_card(stage, work.facts, work.recipe, library="transformers")
    difference = _largest_difference(weights, _read_model(folder), folder)
    return Exported(folder, name, "AutoModelForCausalLM.from_pretrained", difference)


def _cast(tensor: Tensor, dtype: str) -> Tensor:
    """On the CPU in the output's dtype; the trained weight itself where nothing is to change."""
    wanted = DTYPES.get(dtype, tensor.dtype) if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", wanted).contiguous()


def _saved_buffers(model: Any) -> list[tuple[str, Tensor]]:
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def _adapter_weights(model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=ADAPTER, save_embedding_layers=False
    )
    return found


def _adapter_config(model: Any, source: Source, recipe: CausalLmRecipe) -> Any:
    config = copy.copy(model.peft_config[ADAPTER])
    given = recipe.model.source
    is_hub = not given.startswith(builtin.PREFIX) and not Path(given).expanduser().exists()
    config.base_model_name_or_path = given if is_hub else at_home(str(source.located.path))
    config.revision = recipe.model.revision
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    return config


def _save_model(model: Any, tokenizer: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    generation = model.generation_config
    model.generation_config = _speakable(generation, stop_ids(model, tokenizer))
    try:
        model.save_pretrained(folder, state_dict=dict(weights))
    finally:
        model.generation_config = generation
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    dtype = next(weight.dtype for weight in weights.values() if weight.is_floating_point())
    config["dtype"] = str(dtype).removeprefix("torch.")  # the library wrote the training's
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _speakable(generation: Any, ends: list[int]) -> Any:
    """The model's generation settings, stopping at every end mark that was trained.

    Published ones often name a temperature without do_sample, which the library reads but will not
    write.
    """
    adapted = copy.deepcopy(generation)
    adapted.eos_token_id = ends or None
    try:
        adapted.validate(strict=True)
    except ValueError:
        adapted.do_sample = True
    return adapted


def _read_adapter(folder: Path, source: Source) -> dict[str, Tensor]:
    """Adapter weights as peft reads them onto the model, whose own weights stay in their files."""
    try:
        with quiet_libraries():
            base = AutoModelForCausalLM.from_pretrained(
                source.located.path, dtype="auto", use_safetensors=True, trust_remote_code=False
            )
            loaded = PeftModel.from_pretrained(base, folder)
    except UNREADABLE as error:
        raise OutputError(f"{folder} was written, but peft cannot load it: {error}") from error
    return {
        PREFIX + name: tensor for name, tensor in _adapter_weights(loaded.base_model.model).items()
    }


def _read_model(folder: Path) -> dict[str, Tensor]:
    try:
        with quiet_libraries():
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False
            )
    except UNREADABLE as error:
        raise OutputError(
            f"{folder} was written, but transformers cannot load it: {error}"
        ) from error
    return {**dict(model.named_parameters()), **dict(_saved_buffers(model))}


def _largest_difference(
    written: Mapping[str, Tensor], read: Mapping[str, Tensor], folder: Path
) -> float:
    """0.0; raises OutputError if names, shapes or values changed on the way."""
    if written.keys() != read.keys():
        names = ", ".join(sorted(written.keys() ^ read.keys())[:3])
        raise OutputError(f"{folder} does not load back: tensors missing or new: {names}")
    for name, tensor in written.items():
        other = read[name].detach()
        if tensor.shape != other.shape:
            raise OutputError(f"{folder} does not load back: {name} has another shape")
        difference = (tensor.float() - other.float()).abs()
        if not (difference == 0).all():  # also where a weight is not a number
            raise OutputError(
                f"{folder} does not load back: {name} differs by up to {difference.max():g}"
            )
    return 0.0


def describe(facts: TrainingFacts, recipe: CausalLmRecipe) -> dict[str, str]:
    """The training in words, for headers and the model card."""
    known = {
        "name": facts.name,
        "base model": at_home(recipe.model.source),
        "method": recipe.method.kind,
        "steps": facts.steps,
        "examples": facts.num_examples,
        "learning rate": facts.learning_rate,
        "optimizer": facts.optimizer,
        "seed": facts.seed,
        "final loss": facts.loss,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


def _write_card(folder: Path, facts: TrainingFacts, recipe: CausalLmRecipe, library: str) -> None:
    if not recipe.output.metadata:
        return
    front = ["---", f"library_name: {library}", "pipeline_tag: text-generation", "---"]
    rows = [f"| {name} | {value} |" for name, value in describe(facts, recipe).items()]
    lines = [*front, f"# {facts.name}", "", "Trained with acmsao.", "", "| | |", "|---|---|", *rows]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


WRITERS: Mapping[str, Callable[[Work, Path], Exported]] = {
    "peft": _adapter,
    "transformers": _model,
    "merged": _merged,
}
