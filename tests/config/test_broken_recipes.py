"""Recipes that are refused: what is said, where, and what is suggested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from acmsao_cli.config.locate import locate
from acmsao_cli.errors import ConfigError

Refusal = Callable[..., ConfigError]

# What is added to a good recipe of nine lines, what the error says, and what it suggests.
BROKEN = {
    "unknown key": (
        "optimizer:\n  lr: 1e-4\n  learning_rate: 1e-4\n",
        "unknown key `optimizer.learning_rate` in r.yaml:12",
        "did you mean `optimizer.lr`?",
    ),
    "misspelled key": (
        "checkpoint:\n  evry: 5\n",
        "unknown key `checkpoint.evry` in r.yaml:11",
        "did you mean `checkpoint.every`?",
    ),
    "unknown section": ("optimiser:\n  lr: 1\n", "unknown key `optimiser`", "`optimizer`"),
    "key outside its section": (
        "lr: 1e-4\n",
        "unknown key `lr` in r.yaml:10",
        "did you mean `optimizer.lr`?",
    ),
    "another trainer's key": (
        "network_dim: 8\n",
        "unknown key `network_dim` in r.yaml:10",
        "did you mean `method.rank`?",
    ),
    "epochs at the top": ("epochs: 3\n", "unknown key `epochs`", "did you mean `training.epochs`?"),
    "another family's format": (
        "output:\n  formats: [transformers]\n",
        "`output.formats` must be a list, each one of kohya, peft, diffusers, single-file",
        "",
    ),
    "text for a number": (
        "optimizer:\n  lr: fast\n",
        '`optimizer.lr` must be a number above 0; found "fast" (text) in r.yaml:11',
        "peak learning rate",
    ),
    "fraction for a count": (
        "schedule:\n  warmup_steps: 1.5\n",
        "`schedule.warmup_steps` must be a whole number of at least 0; found 1.5 (a number)",
        "",
    ),
    "truth for a number": (
        "optimizer:\n  weight_decay: true\n",
        "must be a number of at least 0; found true",
        "",
    ),
    "not a number": ("optimizer:\n  eps: .nan\n", "found nan (a number) in r.yaml:11", ""),
    "endless number": ("optimizer: {lr: .inf}\n", "found inf (a number) in r.yaml:10", ""),
    "yes": (
        "optimizer:\n  fused_backward: yes\n",
        'must be true or false; found "yes" (text)',
        "write true or false",
    ),
    "null where a value is needed": (
        "optimizer:\n  lr:\n",
        "`optimizer.lr` must be a number above 0; found null (nothing)",
        "",
    ),
    "misspelled choice": (
        "schedule:\n  kind: cosin\n",
        "`schedule.kind` must be one of constant, linear, cosine",
        "did you mean `cosine`?",
    ),
    "one for a list": (
        "optimizer:\n  gradient_edits: rms_clip\n",
        "`optimizer.gradient_edits` must be a list, each a text",
        "a list stands in brackets",
    ),
    "list of the wrong length": (
        "optimizer:\n  betas: [0.9]\n",
        "must be a list of 2, each a number of at least 0 and below 1, or null",
        "",
    ),
    "text for a section": (
        "optimizer: adamw\n",
        '`optimizer` is a section and takes keys, found "adamw" (text) in r.yaml:10',
        "indent the keys",
    ),
    "emptied section": (
        "optimizer:\nschedule:\n  kind: linear\n",
        "`optimizer` is a section and takes keys, found null (nothing) in r.yaml:10",
        "or leave it out",
    ),
    "section for a value": (
        "optimizer:\n  lr: {peak: 1e-4}\n",
        "`optimizer.lr` must be a number above 0; found {'peak': 0.0001} (a section)",
        "",
    ),
    "number for a text": (
        "about: 7\n",
        "`about` must be a text; found 7 (a whole number) in r.yaml:10",
        "put it in quotes",
    ),
    "nothing for a budget": (
        "optimizer: {lr: 1}\nmemory: {budget_gib: 0}\n",
        "`memory.budget_gib` must be a number above 0, or null; found 0",
        "",
    ),
    "unknown optimizer": (
        "optimizer:\n  name: adamv\n",
        "`optimizer.name` names an unknown rule `adamv` in r.yaml:11",
        "did you mean `adamw`?",
    ),
    "unknown edit": (
        "optimizer:\n  direction_edits: [cautius]\n",
        "unknown direction edit `cautius` in r.yaml:11",
        "did you mean `cautious`?",
    ),
    "unknown edit with options": (
        "optimizer:\n  gradient_edits:\n    - {name: rms_clap, limit: 1}\n",
        "unknown gradient edit `rms_clap` in r.yaml:11",
        "did you mean `rms_clip`?",
    ),
    "unknown option of an edit": (
        "optimizer:\n  gradient_edits:\n    - name: rms_clip\n      limits: 1\n",
        "`optimizer.gradient_edits` gives `rms_clip` an unknown option `limits` in r.yaml:11",
        "did you mean `limit`? known: limit",
    ),
    "option of a part without": (
        "optimizer:\n  momentum: {name: ema, alpha: 1}\n",
        "`optimizer.momentum` gives `ema` an unknown option `alpha` in r.yaml:11",
        "it has no options",
    ),
    "text for an option": (
        "optimizer:\n  momentum: {name: ademamix, alpha: big}\n",
        "`alpha` of `ademamix` in `optimizer.momentum` must be a number, or a schedule, as in "
        '{name: milestones, ...}; found "big" (text) in r.yaml:11',
        "",
    ),
    "part without a name": (
        "optimizer:\n  momentum: {alpha: 1}\n",
        "`optimizer.momentum` must be a text, or a mapping of `name` and others",
        "",
    ),
    "one part for a list": (
        "optimizer:\n  gradient_edits: {name: rms_clip}\n",
        "`optimizer.gradient_edits` must be a list, each a text, or a mapping of `name`",
        "a list stands in brackets",
    ),
    "unknown ratio": (
        "optimizer:\n  ratio: atan\n",
        "`optimizer.ratio` names an unknown ratio `atan` in r.yaml:11",
        "did you mean `atan2`?",
    ),
    "unknown storage of a slot": (
        "optimizer:\n  storage: {default: fp32, momentum: bf17}\n",
        "`optimizer.storage` names an unknown storage `bf17` in r.yaml:11",
        "did you mean `bf16`?",
    ),
    "storage without a default": (
        "optimizer:\n  storage: {momentum: bf16}\n",
        "`optimizer.storage` must be a text, or a mapping of `default` and others, each a text",
        "",
    ),
    "unknown storage": ("optimizer:\n  storage: fp8\n", "unknown storage `fp8`", "known:"),
    "key twice": (
        "optimizer:\n  lr: 1\n  lr: 2\n",
        "`optimizer.lr` twice in r.yaml:12",
        "it stands in r.yaml:11 already",
    ),
    "section twice": ("model: {}\n", "`model` twice in r.yaml:10", "r.yaml:1 already"),
    "key with a dot": (
        "optimizer.lr: 1e-4\n",
        "the key `optimizer.lr` with a dot in r.yaml:10",
        "indent keys under their section",
    ),
    "number as a key": ("1: 2\n", "1 (a whole number) as a key in r.yaml:10", "keys are words"),
    "list as a key": ("? [a]\n: 2\n", "(a list) as a key in r.yaml:10", "keys are words"),
    "alias": ("a: &x 1\nb: *x\n", "an anchor `&x` in r.yaml:10", "write values out"),
    "tag": ("about: !!python/name:os.system\n", "a tag `", "write plain values"),
    "second document": ("---\nmodel: {}\n", "a second document in r.yaml:10", "one recipe"),
    "tab": ("optimizer:\n\tlr: 1\n", "not valid YAML in r.yaml:11", "spaces, not tabs"),
    "open quote": ("about: 'a\n", "not valid YAML in r.yaml:", "check the indentation"),
    "two colons": ("about: a: b\n", "not valid YAML in r.yaml:10", "quote texts"),
    "control character": ("about: \x07\n", "a control character in r.yaml:10", "remove it"),
    "nesting": (f"about: {'[' * 40}{']' * 40}\n", "more than 16 levels in r.yaml:10", ""),
    "endless digits": (f"about: {'9' * 5000}\n", "a number of 5000 digits in r.yaml:10", ""),
}


@pytest.mark.parametrize(("added", "says", "suggests"), BROKEN.values(), ids=list(BROKEN))
def test_a_mistake_is_told_with_its_line_and_a_remedy(
    refusal: Refusal, sdxl: str, added: str, says: str, suggests: str
) -> None:
    error = refusal(sdxl + added)
    assert says in error.message
    assert suggests in (error.hint or "")
    assert error.exit_code == 2


# Settings that a good recipe cannot be given, what the error says, and what it suggests.
REFUSED_SETTINGS = {
    "no value": (("optimizer.lr",), "--set takes key=value, found `optimizer.lr`", "lr=1e-4"),
    "no key": (("=3",), "--set takes key=value, found `=3`", ""),
    "unknown key": (("optimizer.lrr=1",), "`optimizer.lrr` in --set optimizer.lrr=1", "lr"),
    "wrong type": (
        ("method.rank=four",),
        '`method.rank` must be a whole number of at least 1; found "four" (text) '
        "in --set method.rank=four",
        "rank of the adapters",
    ),
    "whole section": (("optimizer={lr: 1}",), "`optimizer` cannot be a section", "optimizer.lr="),
    "broken value": (("about=[a",), "not valid YAML in --set about=[a", "quote"),
    "value with a colon": (
        ("about=a: b",),
        "`about` must be a text; found {'a': 'b'} (a section)",
        "--set 'about=\"a: b\"'",
    ),
    "comment": (("about=a # b",), "`#` would start a comment", "--set 'about=\"a # b\"'"),
    "number for a text": (
        ("data.source=2024",),
        "`data.source` must be a text that is not empty; found 2024",
        "--set 'data.source=\"2024\"'",
    ),
    "section emptied": (("optimizer=null",), "`optimizer` is a section and takes keys", ""),
    "key in a value": (("optimizer.lr.x=1",), "`optimizer.lr` must be", ""),
    "unknown method": (("method.kind=lorra",), "`method.kind` must be lora or full", "`lora`"),
    "unknown family": (("model.family=sd15",), "`model.family` must be sdxl or causal_lm", ""),
    "key of the other method": (
        ("method.kind=full", "method.rank=4"),
        "unknown key `method.rank`",
        "only `method.kind: lora` has it",
    ),
    "key of the other family": (
        ("data.max_length=9",),
        "unknown key `data.max_length`",
        "only `model.family: causal_lm` has it",
    ),
    "device": (
        ("training.device=gpu",),
        '`training.device` must be auto, cpu, cuda or cuda:N; found "gpu"',
        "",
    ),
    "two lengths": (("training.epochs=2",), "both `training.steps` and `training.epochs`", "null"),
    "no length": (("training.steps=null",), "neither `training.steps` nor", "training.steps="),
    "fused and clipped": (
        ("optimizer.fused_backward=true",),
        "cannot clip the global norm",
        "training.clip_norm=null and optimizer.gradient_edits=[rms_clip]",
    ),
    "format of the other method": (
        ("output.formats=[diffusers]",),
        "method `lora` does not write",
        "kohya, peft",
    ),
    "format twice": (("output.formats=[kohya, kohya]",), "names a format twice", ""),
    "endless warm-up": (("schedule.warmup_steps=11",), "is 11, but the run has only 10 steps", ""),
    "rate of nothing": (
        ("method.text_encoder_lr=1e-5",),
        "text encoders are not trained",
        "method.text_encoders=true",
    ),
    "no whole bucket": (
        ("data.resolution=1000",),
        "`data.resolution` must be a multiple of 64",
        "960",
    ),
    "odd square": (
        ("data.buckets=false", "data.resolution=1001"),
        "must be a multiple of 8",
        "1000",
    ),
    "odd sample": (
        ("samples.prompts=[a]", "samples.width=100"),
        "`samples.width` must be a multiple of 8",
        "try 96",
    ),
    "buckets off": (("data.buckets=false", "data.bucket_step=32"), "`data.buckets` is false", ""),
    "columns of a folder": (
        ("data.format=captions", "data.caption_column=tags"),
        "has no columns",
        "huggingface",
    ),
    "rounding of fp32": (
        ("method.kind=full", "model.dtype=fp32", "optimizer.rounding=nearest"),
        "has no effect on fp32",
        "bf16",
    ),
    "rounding of adapters": (
        ("model.dtype=bf16", "optimizer.rounding=nearest"),
        "has no effect on adapters",
        "method.kind=full",
    ),
    "revision of a builtin": (("model.revision=main",), "is no hub id", "drop model.revision"),
    "eps of a sign": (
        ("optimizer.name=lion", "optimizer.eps=1e-8"),
        "`lion` has no eps",
        "optimizer.name",
    ),
    "ratio of a sign": (
        ("optimizer.name=lion", "optimizer.ratio=atan2"),
        "`lion` has no ratio",
        "optimizer.name",
    ),
    "eps of an angle": (
        ("optimizer.ratio=atan2", "optimizer.eps=1e-8"),
        "ratio `atan2` has no eps",
        "optimizer.ratio=divide",
    ),
    "option in a setting": (
        ("optimizer.momentum={name: ademamix, alfa: 2}",),
        "gives `ademamix` an unknown option `alfa` in --set optimizer.momentum=",
        "did you mean `alpha`?",
    ),
    "samples of nothing": (("samples.every=5",), "`samples.prompts` is empty", ""),
    "word among names": (
        ("method.targets=[attention, to_q]",),
        "`attention` in a list of layer names",
        "alone",
    ),
    "no targets": (
        ("method.targets=[]",),
        "`method.targets` must be one of attention, all-linear, or a list of at least 1",
        "",
    ),
}


@pytest.mark.parametrize(
    ("settings", "says", "suggests"), REFUSED_SETTINGS.values(), ids=list(REFUSED_SETTINGS)
)
def test_a_setting_is_honoured_or_refused(
    refusal: Refusal, sdxl: str, settings: tuple[str, ...], says: str, suggests: str
) -> None:
    error = refusal(sdxl, *settings)
    assert says in error.message
    assert suggests in (error.hint or "")
    assert "--set" in error.message or "r.yaml" in error.message


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("sdxl", "samples.every=5"),
        ("sdxl", "samples.seed=1"),
        ("sdxl", "samples.steps=4"),
        ("sdxl", "samples.guidance=7"),
        ("sdxl", "samples.width=64"),
        ("sdxl", "samples.height=64"),
        ("causal_lm", "samples.every=5"),
        ("causal_lm", "samples.max_new_tokens=5"),
    ],
)
def test_no_setting_of_samples_is_accepted_where_nothing_is_sampled(
    refusal: Refusal, sdxl: str, causal_lm: str, family: str, setting: str
) -> None:
    error = refusal(sdxl if family == "sdxl" else causal_lm, setting)
    key = setting.partition("=")[0]
    assert error.message == (f"`{key}` is set, but `samples.prompts` is empty in --set {setting}")
    assert error.hint == "add prompts, or drop it"


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("model.family", "  family: sdxl\n"),
        ("model.source", "  source: builtin:tiny-sdxl\n"),
        ("method.kind", "method:\n  kind: lora\n"),
        ("data.source", "data:\n  source: builtin:zoblins\n"),
    ],
)
def test_what_every_recipe_must_say_is_named_when_missing(
    refusal: Refusal, sdxl: str, path: str, written: str
) -> None:
    error = refusal(sdxl.replace(written, ""))
    assert error.message == f"`{path}` is missing in r.yaml"
    assert error.hint


def test_all_mistakes_of_a_file_are_told_at_once(refusal: Refusal, sdxl: str) -> None:
    error = refusal(sdxl + "optimizer:\n  lrr: 1\n  lr: x\nfoo: 1\nsamples: 3\n")
    assert error.message.splitlines() == [
        "4 mistakes",
        "  unknown key `optimizer.lrr` in r.yaml:11; did you mean `optimizer.lr`?",
        "  unknown key `foo` in r.yaml:13; keys here: about, checkpoint, data, loss, memory, "
        "method, model, optimizer, output, samples, schedule, training",
        "  `samples` is a section and takes keys, found 3 (a whole number) in r.yaml:14; "
        "indent the keys of `samples` under it, or leave it out",
        '  `optimizer.lr` must be a number above 0; found "x" (text) in r.yaml:12; '
        "peak learning rate; 1 where the rule finds its own rate",
    ]


def test_at_most_ten_mistakes_are_told(refusal: Refusal, sdxl: str) -> None:
    error = refusal(sdxl + "".join(f"zz{i}: 1\n" for i in range(15)))
    assert error.message.startswith("15 mistakes\n")
    assert len(error.message.splitlines()) == 12
    assert error.message.endswith("and 5 more")


def test_clashing_keys_are_blamed_where_the_later_layer_wrote_one(
    refusal: Refusal, causal_lm: str
) -> None:
    error = refusal(causal_lm.replace("steps: 10", "steps: 10, clip_norm: 1.0"), preset="16gb")
    assert "cannot clip the global norm" in error.message
    assert error.message.endswith("in r.yaml:4")


def test_unknown_names_and_paths_are_told_with_the_nearest(here: Path) -> None:
    cases = {
        "quikstart": "did you mean `quickstart`?",
        "quickstart.yaml": "the recipe that comes with acmsao is called `quickstart`",
        "sub/none.yaml": "recipes that need no path: llm-full, llm-lora, quickstart",
        "": "recipes: llm-full",
    }
    for request, suggests in cases.items():
        with pytest.raises(ConfigError) as caught:
            locate("recipe", request)
        assert suggests in str(caught.value.hint)
    with pytest.raises(ConfigError) as caught:
        locate("preset", "16")
    assert "16gb, 24gb, 80gb, 8gb, cpu" in str(caught.value.hint)
