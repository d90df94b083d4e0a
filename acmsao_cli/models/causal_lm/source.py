"""A transformers folder: what its files say, its tokenizer, and its model with or without weights.

Nothing in a model folder is run: no pickles, no `trust_remote_code`, no kernels that its
configuration names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.errors import ModelError
from acmsao_cli.models.fitting import (
    rehearse,
    require_finite,
    require_fit,
    require_floats,
    shapes_of,
)
from acmsao_cli.models.locate import (
    Located,
    by_name,
    index_of,
    locate,
    read_json,
    require_plain_files,
    weight_files,
)
from acmsao_cli.models.packed import keep_layout
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.safetensors_header import Header, read_header

# What is fetched of a hub id, and copied; pickles and other programs' weights are not.
FILES = ("*.json", "model*.safetensors", "*.jinja", "*.txt", "*.model")

# Of these, what decides how a text is read.
TOKENIZER_FILES = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.model", "*.jinja", "chat_template.json"),
)

# Buffers that old versions of transformers saved among the weights.
FORGOTTEN_BUFFERS = ("inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.masked_bias")

# transformers checks files and configurations only by failing somewhere, with any class.
UNSOUND = Exception


@dataclass(frozen=True)
class Source:
    """A located model with its configuration and the headers of its weight files, all checked."""

    located: Located
    config: Any
    headers: tuple[Header, ...]

    @property
    def text_config(self) -> Any:
        """The part of the configuration that describes the language model."""
        return self.config.get_text_config()


def find(source: str, revision: str | None) -> Located:
    """The folder of a model. Raises ModelError."""
    located = locate(source, revision, single_file_allowed=False, patterns=FILES)
    require_plain_files(located.path, FILES)
    return located


def files_of(located: Located) -> dict[str, Path]:
    """What a training reads of a model's folder. Raises ModelError."""
    folder = located.path
    texts = (file for pattern in TOKENIZER_FILES for file in folder.glob(pattern))
    weights = (index_of(folder, "model"), *weight_files(folder, "model"))
    return by_name((folder / "config.json", *weights, *texts), folder)


def longest(recipe: CausalLmRecipe, config: Any) -> int:
    """Tokens per example: what the recipe allows and the model can read."""
    allowed, readable = recipe.data.max_length, context_length(config)
    return allowed if readable is None else min(allowed, readable)


def context_length(config: Any) -> int | None:
    """Tokens the model was made for; None where nothing bounds it."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def read_source(located: Located) -> Source:
    """Read configuration and headers, no weights. Raises ModelError for what cannot be trained."""
    config = read_config(located)
    headers = tuple(read_header(file) for file in weight_files(located.path, "model"))
    source = Source(located, config, headers)
    _check_layers(source)
    return source


def read_config(located: Located) -> Any:
    """The folder's configuration. Raises ModelError unless the model can be trained here."""
    path = located.path / "config.json"
    if (located.path / "adapter_config.json").exists():
        raise ModelError(
            f"{located.path} is a LoRA adapter, not a model",
            hint="give model.source the model it was trained on (base_model_name_or_path there)",
        )
    if not path.is_file():
        raise ModelError(
            f"{located.path} has no config.json", hint="a transformers folder is needed"
        )
    raw = read_json(path)
    _refuse_untrainable(located, raw)
    try:
        config = AutoConfig.from_pretrained(located.path, trust_remote_code=False)
    except UNSOUND as error:
        raise _unsound(located, "config.json cannot be used", error) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or _reads_both_ways(config):
        raise ModelError(f"{located.path} is a {raw['model_type']}, not a causal language model")
    return config


def _reads_both_ways(config: Any) -> bool:
    """A BERT and its kin, which would see the token they are to predict.

    GPT-NeoX's configuration calls it no decoder either; its architecture's name tells them apart.
    """
    names = " ".join(getattr(config, "architectures", None) or ())
    is_decoder = getattr(config, "is_decoder", True)
    return not is_decoder and "ForCausalLM" not in names and "LMHeadModel" not in names


def _refuse_untrainable(located: Located, raw: dict[str, object]) -> None:
    kind = str(raw.get("model_type"))
    if kind not in CONFIG_MAPPING and "auto_map" in raw:
        raise ModelError(
            f"{located.path} needs its own Python code (auto_map in config.json), and code from a "
            "model folder is never run: refused",
            hint="use a model that transformers knows itself",
        )
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{located.path}/config.json: transformers does not know the model_type `{kind}`"
        )
    if "quantization_config" in raw:
        raise ModelError(
            f"{located.path} has quantised weights, which cannot be trained",
            hint="use the model's original weights",
        )
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if "/" in str(raw.get(key, "")):
            raise ModelError(
                f"{located.path}/config.json: {key} names code to be fetched from the hub: refused",
                hint=f"remove {key} from config.json",
            )


def _check_layers(source: Source) -> None:
    """An absurd number of layers would take hours to build; each has at least one weight."""
    layers = getattr(source.text_config, "num_hidden_layers", None)
    tensors = sum(len(header.tensors) for header in source.headers)
    if isinstance(layers, int) and layers > tensors:
        raise ModelError(
            f"{source.located.path}/config.json says {layers} layers, but its weights are only "
            f"{tensors} tensors"
        )


def _unsound(located: Located, what: str, error: BaseException) -> ModelError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return ModelError(f"{located.path}: {what}: {reason}")


def load_tokenizer(located: Located) -> Any:
    """The folder's tokenizer. Raises ModelError if there is none that works."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(located.path, trust_remote_code=False)
        ids = tokenizer("a b", add_special_tokens=False)["input_ids"]
    except UNSOUND as error:
        raise _no_tokenizer(located) from error
    if not ids:  # Without files some classes make an empty tokenizer that drops every text.
        raise _no_tokenizer(located)
    return tokenizer


def _no_tokenizer(located: Located) -> ModelError:
    return ModelError(
        f"{located.path} has no tokenizer that works",
        hint="a model folder needs its tokenizer.json and tokenizer_config.json beside the weights",
    )


def build_without_weights(source: Source, dtype: torch.dtype) -> Any:
    """The model on the meta device. Raises ModelError if the weight files cannot fill it."""
    try:
        with torch.device("meta"), quiet_libraries():
            model = AutoModelForCausalLM.from_config(
                source.config, dtype=dtype, trust_remote_code=False
            )
    except UNSOUND as error:
        raise _unsound(source.located, "its configuration makes no model", error) from error
    check_fit(source, model)
    settle_positions(model)
    return model


def check_fit(source: Source, model: Any) -> None:
    """Raise ModelError unless the weight files fill `model`, a meta one, to the last number."""
    needed, present = count(model), sum(header.num_parameters for header in source.headers)
    if needed > present:
        raise ModelError(
            f"{source.located.path}: config.json describes {needed} parameters, but the weight "
            f"files hold {present}",
            hint="the two do not belong together, or a file is missing; download the model again",
        )
    require_floats(source.headers, dict(model.named_parameters()).keys())
    stored = shapes_of(source.headers)
    try:
        report = rehearse(type(model), source.config, stored)
    except UNSOUND as error:
        raise _unsound(source.located, "its weights cannot be loaded", error) from error
    require_fit(source.located.path, report, is_forgotten)


def is_forgotten(name: str) -> bool:
    """Whether a tensor's name is that of a buffer which old versions of transformers saved."""
    return name.endswith(FORGOTTEN_BUFFERS)


def settle_positions(model: nn.Module) -> None:
    """Fix the frequencies of rotary embeddings: a meta tensor cannot say how long the text is."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            module.rope_type = "default"  # type: ignore[assignment]
        elif isinstance(kind, dict):
            module.rope_type = dict.fromkeys(kind, "default")  # type: ignore[assignment]


def count(model: nn.Module) -> int:
    """Parameters, a shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def load(source: Source, device: torch.device, dtype: torch.dtype, quantization: Any = None) -> Any:
    """The model with its weights on `device`, read tensor by tensor.

    Raises ModelError unless weights and configuration fit each other exactly: transformers would
    fill what is missing with random numbers and drop what is left over.
    """
    build_without_weights(source, dtype)
    placement = {} if device.type == "cpu" else {"device_map": {"": str(device)}}
    if quantization is not None:
        placement = {"device_map": {"": str(device)}, "quantization_config": quantization}
    try:
        with quiet_libraries():
            model, report = AutoModelForCausalLM.from_pretrained(
                source.located.path,
                config=source.config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **placement,
            )
    except torch.OutOfMemoryError:
        raise
    except UNSOUND as error:
        raise _unsound(source.located, "its weights cannot be loaded", error) from error
    require_fit(source.located.path, report, is_forgotten)
    require_finite(model, source.located.path)
    if quantization is not None:
        keep_layout(model)
    return model
