"""Recipes that are no recipes, or whose numbers make no sense; each within moments, unloaded."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Acmsao, Outcome, refused

pytestmark = pytest.mark.usefixtures("ends")

RECIPE = """\
model: {family: causal_lm, source: builtin:tiny-llm}
method: {kind: full}
data: {source: builtin:pirate}
training: {steps: 10}
"""


@pytest.fixture
def validate(acmsao: Acmsao) -> Callable[..., Outcome]:
    """What `acmsao validate r.yaml` says of these bytes."""

    def run(content: bytes | str | None, *options: str) -> Outcome:
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            Path("r.yaml").write_bytes(data)
        return acmsao("validate", "r.yaml", *options)

    return run


# Files

BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
FILES: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", "r.yaml must hold sections"),
    "only a comment": ("# nothing\n", "r.yaml must hold sections"),
    "a list": ("- model\n- method\n", "r.yaml must hold sections"),
    "a text": ("hello", "r.yaml must hold sections"),
    "a number": ("1e400", "r.yaml must hold sections"),
    "2 MB": (RECIPE + "#" * 2**21, "r.yaml is larger than 128 KiB"),
    "2 MB of keys": ("a: 1\n" * 2**19, "r.yaml is larger than 128 KiB"),
    "NUL": (RECIPE + "about: a\0b\n", "a control character in r.yaml:5"),
    "NULs": (b"\0" * 1000, "a control character in r.yaml:1"),
    "binary": (bytes(range(256)) * 9, "r.yaml:2 is not UTF-8"),
    "escapes": (RECIPE + "about: \x1b[2J\n", "a control character in r.yaml:5"),
    "escapes in a key": (RECIPE + '"\\e[2J\\u202e": 1\n', "unknown key `\\x1b[2J\\x202e`"),
    "UTF-16": (RECIPE.encode("utf-16"), "r.yaml:1 is not UTF-8"),
    "UTF-16 without a mark": (RECIPE.encode("utf-16-le"), "r.yaml:1"),
    "latin-1": ((RECIPE + "about: caf\xe9\n").encode("latin-1"), "r.yaml:5 is not UTF-8"),
    "500 levels": (RECIPE + f"about: {'[' * 500}{']' * 500}\n", "more than 16 levels in r.yaml:5"),
    "50000 levels": (RECIPE + "about: " + "[" * 50_000, "more than 16 levels in r.yaml:5"),
    "500 levels of lines": (
        RECIPE + "about:\n" + "".join(" " * n + "a:\n" for n in range(1, 400)),
        "more than 16 levels in r.yaml:",
    ),
    "an anchor": (RECIPE + "about: &a x\n", "an anchor `&a` in r.yaml:5"),
    "an alias": (RECIPE + "about: *a\n", "an alias `*a` in r.yaml:5"),
    "billion laughs": ("a0: &a0 [lol]\n" + BOMB, "an anchor `&a0` in r.yaml:1"),
    "a merge key": (RECIPE + "<<: {about: x}\n", "unknown key `<<` in r.yaml:5"),
    "a merged alias": (RECIPE + "<<: *defaults\n", "an alias `*defaults` in r.yaml:5"),
    "a tag": (RECIPE + "about: !!str x\n", "a tag `"),
    "a tag that runs code": (
        RECIPE + "about: !!python/object/apply:os.mkdir [canary]\n",
        "a tag `",
    ),
    "a tag of its own": (RECIPE + "about: !include /etc/passwd\n", "a tag `!include`"),
    "a directive": ("%TAG ! tag:yaml.org,2002:python/\n---\n" + RECIPE + "about: !a x\n", "a tag"),
    "two keys": (RECIPE + "about: x\nabout: y\n", "`about` twice in r.yaml:6", ),
    "two sections": (RECIPE + "model: {}\n", "`model` twice in r.yaml:5"),
    "two documents": (RECIPE + "---\n" + RECIPE, "a second document in r.yaml:5"),
    "a date": (RECIPE + "about: 2024-01-01\noptimizer: {lr: 2024-01-01}\n",
               '`optimizer.lr` must be a number above 0; found "2024-01-01" (text) in r.yaml:6'),
    "an old octal": (RECIPE + "checkpoint: {every: 0x}\n", '"0x" (text) in r.yaml:5'),
    "sexagesimal": (RECIPE + "checkpoint: {every: 1:30}\n", '"1:30" (text) in r.yaml:5'),
    "not a number": (RECIPE + "optimizer: {lr: .nan}\n", "found nan (a number) in r.yaml:5"),
    "infinite": (RECIPE + "optimizer: {lr: -.inf}\n", "found -inf (a number) in r.yaml:5"),
    "1e400": (RECIPE + "optimizer: {lr: 1e400}\n", "found inf (a number) in r.yaml:5"),
    "many digits": (RECIPE + f"checkpoint: {{every: {'9' * 5000}}}\n", "a number of 5000 digits"),
    "a set": (RECIPE + "? about\n", "`about` must be a text; found null"),
    "a list as a key": (RECIPE + "? [a]\n: 1\n", "(a list) as a key in r.yaml:5"),
    "null as a key": (RECIPE + "~: 1\n", "null (nothing) as a key in r.yaml:5"),
    "unclosed": (RECIPE + "about: 'x\n", "not valid YAML in r.yaml:"),
    "a tab": (RECIPE + "optimizer:\n\tlr: 1\n", "not valid YAML in r.yaml:6"),
    "a long word": (RECIPE + "a" * 100_000 + ": 1\n", "r.yaml:5"),
    "an unknown key": (RECIPE + "optimizer: {lrr: 1}\n", "r.yaml:5 help: did you mean `optimizer"),
    "another's key": (RECIPE + "learning_rate: 1\n", "r.yaml:5 help: did you mean `optimizer.lr`?"),
    "a misspelt section": (RECIPE + "trianing: {seed: 1}\n", "r.yaml:5 help: did you mean `train"),
    "a thousand unknown keys": (
        RECIPE + "".join(f"k{n}: 1\n" for n in range(1000)),
        "1000 mistakes",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_recipe_is_refused_by_its_line(
    validate: Callable[..., Outcome], content: bytes | str, says: str
) -> None:
    before = time.process_time()
    refused(validate(content), 2, says)
    assert time.process_time() - before < 4
    assert not Path("canary").exists()


def test_yaml_1_2_numbers_are_what_they_look_like(validate: Callable[..., Outcome]) -> None:
    written = "optimizer: {lr: 1e-4, weight_decay: .5}\ncheckpoint: {every: 010, keep: 0x10}\n"
    done = validate(RECIPE + written, "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)["values"]
    assert (values["optimizer"]["lr"], values["optimizer"]["weight_decay"]) == (1e-4, 0.5)
    assert (values["checkpoint"]["every"], values["checkpoint"]["keep"]) == (10, 16)


PLACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a device": (lambda file: file.symlink_to("/dev/zero"), "is not a regular file"),
    "a folder": (Path.mkdir, "is a folder"),
    "a link to itself": (lambda file: file.symlink_to(file.name), "cannot be read: Too many"),
    "a link to nothing": (lambda file: file.symlink_to("gone"), "cannot be read: No such file"),
    "nothing": (lambda file: None, "there is no recipe at"),
}


@pytest.mark.parametrize("command", ["validate", "plan", "train", "data"])
@pytest.mark.parametrize(("make", "says"), PLACES.values(), ids=PLACES)
def test_what_is_no_file_is_refused_without_waiting(
    acmsao: Acmsao, command: str, make: Callable[[Path], Any], says: str
) -> None:
    make(Path("r.yaml"))
    words = ("data", "check") if command == "data" else (command,)
    refused(acmsao(*words, "r.yaml"), 2, "r.yaml", says)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda file: file.write_bytes(b"\xff")])
def test_nor_is_a_preset_waited_for(
    validate: Callable[..., Outcome], make: Callable[[Path], Any]
) -> None:
    make(Path("p.yaml"))
    refused(validate(RECIPE, "--preset", "./p.yaml"), 2, "p.yaml")


# Numbers

WHOLE = ("true", "four", "'4'", "-1", "1.5", "1e400", "16GB", "[1]", ".nan", f"{10**30}", "''")
REAL = ("true", "fast", "'1'", "-1", "1e400", "-.inf", ".nan", "16GB", "[1]", "{a: 1}")
# Every key is held to a few of them, one of each kind to all.
SOME_WHOLE, SOME_REAL = ("true", "'4'", "-1", "1.5", f"{10**30}"), ("true", "'1'", "-1", ".nan")
NUMBERS: dict[str, tuple[str, ...]] = {
    "training.steps": (*WHOLE, "0"),
    "training.batch_size": (*SOME_WHOLE, "0", "null", f"{2**31 - 1}"),
    "training.accumulation": (*SOME_WHOLE, "0"),
    "training.seed": (*SOME_WHOLE, f"{2**31}"),
    "training.clip_norm": (*SOME_REAL, "0"),
    "training.nonfinite_steps": (*SOME_WHOLE, "0"),
    "training.batch_schedule": ("[1]", "[[0, 1]]", "[[1]]", f"[[1, {10**30}]]", "5"),
    "optimizer.lr": (*REAL, "0", "null"),
    "optimizer.weight_decay": SOME_REAL,
    "optimizer.betas": ("[1, 1]", "[-1, 0.9]", "[0.9]", "0.9", "[.nan, 0.9]", "[true, 0.9]"),
    "optimizer.eps": SOME_REAL,
    "schedule.warmup_steps": (*SOME_WHOLE, "11"),
    "data.max_length": (*SOME_WHOLE, "0", "7"),
    "data.max_bad": (*SOME_REAL, "1"),
    "memory.budget_gib": (*SOME_REAL, "0"),
    "memory.resident_blocks": SOME_WHOLE,
    "memory.loss_chunk": (*SOME_WHOLE, "0"),
    "checkpoint.every": (*SOME_WHOLE, "0"),
    "checkpoint.keep": (*SOME_WHOLE, "0"),
    "samples.every": SOME_WHOLE,
    "samples.max_new_tokens": SOME_WHOLE,
}
ADAPTERS = {
    "method.rank": (*SOME_WHOLE, "0"),
    "method.alpha": (*SOME_REAL, "0"),
    "method.dropout": (*SOME_REAL, "1"),
    "method.targets": ("5", "[]", "[5]", "attention2", "[attention, up_proj]", "null", "{a: 1}"),
}
PICTURES = {
    "data.resolution": (*WHOLE, "0", "15", "1000000000"),
    "data.bucket_step": (*SOME_WHOLE, "0", "1000000000"),
    "data.caption_dropout": (*SOME_REAL, "1"),
    "samples.width": (*SOME_WHOLE, "0", "7", "1000000000"),
    "samples.height": (*SOME_WHOLE, "0", "7", "1000000000"),
    "samples.steps": (*SOME_WHOLE, "0"),
    "samples.guidance": SOME_REAL,
    "samples.seed": SOME_WHOLE,
    "loss.min_snr_gamma": (*SOME_REAL, "0"),
    "method.text_encoder_lr": (*SOME_REAL, "0"),
}
KINDS = {
    **dict.fromkeys(NUMBERS, RECIPE),
    **dict.fromkeys(ADAPTERS, RECIPE.replace("full", "lora")),
    **dict.fromkeys(
        PICTURES,
        RECIPE.replace("full", "lora").replace("causal_lm", "sdxl").replace("tiny-llm", "tiny-sdxl")
        + "samples: {prompts: [a]}\n",
    ),
}


@pytest.mark.parametrize("key", KINDS)
def test_a_number_that_makes_no_sense_is_refused_with_its_key(
    validate: Callable[..., Outcome], key: str
) -> None:
    recipe = KINDS[key]
    if key.startswith("samples.") and "prompts" not in recipe:
        recipe += "samples: {prompts: [a]}\n"
    for value in {**NUMBERS, **ADAPTERS, **PICTURES}[key]:
        outcome = validate(recipe, "-s", f"{key}={value}")
        assert outcome.code == 2, f"{key}={value}: {outcome}"
        refused(outcome, 2, key)


@pytest.mark.parametrize("value", ["1e-4", "0.0001", "1.0e-4", "+1E-4", "1e-04"])
def test_a_rate_may_be_written_as_numbers_are(validate: Callable[..., Outcome], value: str) -> None:
    done = validate(RECIPE, "--json", "-s", f"optimizer.lr={value}")
    assert json.loads(done.out)["values"]["optimizer"]["lr"] == 1e-4


# What only the model or the steps can tell


@pytest.mark.parametrize("value", ["nan", ".nan", "inf", ".inf", "-1", "-1e30", "0", "1e400"])
def test_rates_that_are_none_are_refused(acmsao: Acmsao, lm: Path, value: str) -> None:
    refused(acmsao("train", str(lm), "-s", f"optimizer.lr={value}"), 2, "optimizer.lr")
    assert not Path("runs").exists()


def test_an_absurd_rate_diverges_with_the_last_good_checkpoint(acmsao: Acmsao, lm: Path) -> None:
    outcome = acmsao(
        *("train", str(lm), "-s", "optimizer.lr=1e30", "-s", "training.clip_norm=null"),
        *("-s", "checkpoint.every=1", "-s", "samples.prompts=[]", "-s", "training.steps=20"),
        *("-s", "samples.max_new_tokens=64", "-o", "out", "--json"),
    )
    refused(outcome, 7, "not finite", "checkpoint")
    last = json.loads(outcome.out.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("error", 7)
    assert not Path("out/final").exists()


def test_a_rank_that_no_layer_has_is_refused_with_the_layer(acmsao: Acmsao, lm: Path) -> None:
    options = ("-s", "method.kind=lora", "-s", "method.rank=512")
    outcome = acmsao("train", str(lm), "--dry-run", *options)
    refused(outcome, 2, "method.rank is 512", "(32 x 32)", "has rank 32")


@pytest.mark.parametrize("target", ["v_prjj", "up_proj2", "model", "mlp", "norm", "\x1b[2J", ""])
def test_a_target_that_names_no_layer_is_refused(acmsao: Acmsao, lm: Path, target: str) -> None:
    outcome = acmsao(
        *("train", str(lm), "--dry-run", "-s", "method.kind=lora"),
        *("-s", f"method.targets={json.dumps(['q_proj', target])}"),
    )
    refused(outcome, 2, "method.targets")


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        (f"training.batch_size={2**16}", 3),
        ("training.device=cuda:7", 2),
    ],
)
def test_what_cannot_be_had_here_is_refused(
    acmsao: Acmsao, lm: Path, setting: str, code: int
) -> None:
    refused(acmsao("train", str(lm), "--dry-run", "-s", setting), code, "help: ")


@pytest.mark.parametrize("key", ["training.accumulation", "training.steps", "data.max_length"])
def test_numbers_that_nobody_has_time_for_are_planned(acmsao: Acmsao, lm: Path, key: str) -> None:
    outcome = acmsao("plan", str(lm), "-s", f"{key}={2**31 - 1}")
    assert outcome.code == 0, outcome.err
