"""Nothing that a stranger made is run: held by what the package's code may call at all."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import acmsao_cli

PACKAGE = Path(acmsao_cli.__file__).resolve().parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Modules whose reading of a file can run code that is in it.
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
# Calls that read pickles, run text, or let a shell read it.
RUNNING = {
    *("torch.load", "torch.hub.load", "torch.package", "numpy.load", "np.load"),
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path"),
    *("load_attn_procs", "load_state", "load_checkpoint_and_dispatch"),
}
AUTO = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "AutoModel", "AutoProcessor")


def runs_what_it_reads(tree: ast.Module) -> Iterator[str]:
    """What in a module reads pickles, runs text, or has a shell read it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if {module.partition(".")[0] for module in modules} & UNPICKLING:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call):
            given = keywords(node)
            allowed = (("shell", "False"), ("allow_pickle", "False"), ("weights_only", "True"))
            if ast.unparse(node.func) in RUNNING or any(given.get(k, v) != v for k, v in allowed):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def trusts_a_repository(tree: ast.Module) -> Iterator[str]:
    """Where a model's own code may be run, or its pickles be read: where that is not refused.

    What is not said is asked on stdin.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = keywords(node)
        owner, _, method = ast.unparse(node.func).rpartition(".")
        reads = owner in AUTO and method in ("from_pretrained", "from_config")
        weighs = reads and "Model" in owner and method == "from_pretrained"
        if (
            given.get("trust_remote_code", "False") != "False"
            or (reads and "trust_remote_code" not in given)
            or (weighs and given.get("use_safetensors") != "True")
        ):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


LAWS = (runs_what_it_reads, trusts_a_repository)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_no_module_runs_what_it_reads(law: Callable[[ast.Module], Iterator[str]]) -> None:
    assert len(FILES) > 100
    trees = {path.relative_to(PACKAGE): ast.parse(path.read_text("utf-8")) for path in FILES}
    assert [f"{path} {found}" for path, tree in trees.items() for found in law(tree)] == []


FORBIDDEN = {
    runs_what_it_reads: (
        "import pickle",
        "from yaml import load",
        "torch.load('x')",
        "torch.load_it('x', weights_only=False)",
        "eval('1')",
        "subprocess.run('x', shell=True)",
        "np.load('x')",
    ),
    trusts_a_repository: (
        "AutoConfig.from_pretrained('x')",
        "AutoModelForCausalLM.from_pretrained('x', trust_remote_code=False)",
        "anything(trust_remote_code=True)",
        "anything(trust_remote_code=maybe)",
    ),
}


@pytest.mark.parametrize(
    ("law", "text"), [(law, text) for law, texts in FORBIDDEN.items() for text in texts]
)
def test_what_is_forbidden_is_found(law: Callable[[ast.Module], Iterator[str]], text: str) -> None:
    assert list(law(ast.parse(text)))
