"""The house: which module may import which, and what no module may do."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACE = "__init__"
FLOORS = [
    {"errors", "exiting", "garbage", "telling", "threads", "timing"},
    {"box", "step", "folding", "origin"},
    {"spec", "naming", "retention", "checksum", "fields", "rng", "strings"},
    {"contenthash", "distance", "due"},
    {"adapter", "casting", "skeleton", "storage", "manifest", "table"},
    {"cuda", "jaxarrays", "containers", "layout", "raw", "record", "treefile", "zipreading"},
    {"frameworks", "source", "sighting", "deleting", "zipwriting"},
    {"arrays"},
    {"tree", "memory"},
    {"group", "backend", "transfer", "renaming", "ledger"},
    {"restorereport"},
    {"commit", "diffreport", "matching", "smallfile"},
    {"partial", "saving", "sweep", "template", "whole"},
    {"restoring", "treesource", "planner", "streaming", "structure", "views", "convertreport", "migratereport", "transforms"},
    {"checkpoint"},
    {"foreign"},
    {"linked"},
    {"finding", "filecopy", "foreigncopy"},
    {"hints", "incremental", "materializing", "resuming"},
    {"adopting", "copying"},
    {"manager", "files", "swapping"},
    {"carrying", "comparing", "snapshot", "pending", "uploading"},
    {"nearest", "layers", "scratch"},
    {"layerfinding", "deriving"},
    {"rules"},
    {"rulefile"},
    {"rulesets"},
    {"staging"},
    {"choosing"},
    {"kerasfiles"},
    {"converting", "exportforms"},
    {"background", "diagnosis", "exporting", "side", "tiers", "moving"},
    {"differing", "migrating"},
    {FACE},
    {"testing", "report"},
    {"cli", "integrations"},
]
FLOOR = {place: number for number, places in enumerate(FLOORS) for place in places}
# An import in a function is paid only by who calls it: for frameworks that may be there or not, and for the demo's data.
LAZY = {
    "ckptmgr/arrays.py",
    "ckptmgr/groups.py",
    "ckptmgr/cli/demo.py",
    "ckptmgr/report/rendering.py",
    "backends/ckptmgr_tf_bundle/table.py",
}
FRAMEWORKS = {"torch", "jax", "tensorflow", "keras", "cupy", "mlx", "typer", "rich", "pytest", "hypothesis", "sklearn"}
OPTIONAL = {
    "h5py",
    "tensorstore",
    "cramjam",
    "obstore",
    "s3fs",
    "gcsfs",
    "adlfs",
    "botocore",
    "jinja2",
    "plotly",
}  # what some files, or some storage, need
FOR_BACKENDS = {"ckptmgr.backend", "ckptmgr.errors"}
CODE_RUNNERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "codeop"}

CORE = sorted((ROOT / "ckptmgr").rglob("*.py"))
BACKENDS = sorted((ROOT / "backends").rglob("*.py"))
OWN = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__") for path in CORE}
ALL = [path for folder in ("ckptmgr", "backends", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_core_module = pytest.mark.parametrize("path", CORE, ids=named)
each_backend_module = pytest.mark.parametrize("path", BACKENDS, ids=named)
each_library_module = pytest.mark.parametrize("path", CORE + BACKENDS, ids=named)


@each_core_module
def test_module_imports_only_from_floors_above_its_own(path: Path) -> None:
    name = module(path)
    floor = FLOOR[place(name)]

    wrong = [other for other in own_imports(tree(path)) if place(other) != place(name) and FLOOR[place(other)] >= floor]

    assert wrong == []


def test_store_protocol_knows_no_store() -> None:
    used = own_imports(tree(ROOT / "ckptmgr" / "storage" / "store.py"))

    assert [name for name in used if place(name) == "storage"] == []


def test_modules_form_no_cycle() -> None:
    graph = {module(path): set(own_imports(tree(path))) for path in CORE}

    order = list(graphlib.TopologicalSorter(graph).static_order())

    assert set(graph) <= set(order)


@each_library_module
def test_imports_stand_at_the_top_of_the_file(path: Path) -> None:
    inside = [
        node
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom) and not is_allowed_inside(path, node)
    ]

    assert [ast.unparse(node) for node in inside] == []


@each_library_module
def test_imports_are_absolute(path: Path) -> None:
    relative = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level]

    assert relative == []


@each_backend_module
def test_backend_imports_only_what_plugins_may(path: Path) -> None:
    allowed = FOR_BACKENDS | {path.relative_to(ROOT / "backends").parts[0]}

    used = {name for name in imported_modules(tree(path)) if name.startswith("ckptmgr")}

    assert {name for name in used if name not in allowed and name.partition(".")[0] not in allowed - FOR_BACKENDS} == set()


@each_core_module
def test_core_names_no_backend(path: Path) -> None:
    used = [name for name in imported_modules(tree(path)) if name.startswith("ckptmgr_")]

    assert used == []


@each_library_module
def test_nothing_read_from_a_file_can_be_executed(path: Path) -> None:
    nodes = list(ast.walk(tree(path)))
    modules = {name.partition(".")[0] for name in imported_modules(tree(path))}
    calls = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    options = {word.arg for node in nodes if isinstance(node, ast.Call) for word in node.keywords}

    assert modules & CODE_RUNNERS == set()
    assert calls & {"eval", "exec", "compile", "__import__"} == set()
    assert options & {"allow_pickle"} == set()


@each_library_module
def test_broad_except_raises_again_or_tells_its_reason(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    broad = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler) and is_broad(node)]

    silent = [number for number in broad if not any("#" in line for line in lines[max(number - 3, 0) : number + 2])]

    assert silent == []


@pytest.mark.parametrize("path", ALL, ids=named)
def test_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", [path for path in ALL if path != Path(__file__).resolve()], ids=named)
def test_file_names_no_place_of_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert [place for place in ("/work/", "/root/", "/farm/", "/Users/", "C:\\Users") if place in text] == []


def test_every_package_is_typed_and_named_in_the_wheel() -> None:
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = [ROOT / "ckptmgr", *sorted(path for path in (ROOT / "backends").iterdir() if path.name.startswith("ckptmgr_"))]

    assert [path.name for path in packages if not (path / "py.typed").exists()] == []
    assert [path.name for path in packages if f'"{named(path)}"' not in listed] == []


def test_importing_ckptmgr_loads_no_framework() -> None:
    script = "import sys, ckptmgr; print(*sorted({name.partition('.')[0] for name in sys.modules}))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    formats = {"ckptmgr_safetensors", "ckptmgr_tf_bundle", "ckptmgr_hdf5", "ckptmgr_torch", "ckptmgr_orbax", "google.protobuf"}
    assert set(done.stdout.split()) & (FRAMEWORKS | OPTIONAL | formats) == set()
    assert "ckptmgr.cli" not in done.stdout


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def place(name: str) -> str:
    """Where in the table a module stands: ``ckptmgr.storage.posix`` at ``storage``, ``ckptmgr`` itself at the face."""
    return name.split(".")[1] if "." in name else FACE


def imported_modules(parsed: ast.AST) -> Iterator[str]:
    """Every module an import statement names; for ``from a import b`` this is ``a.b`` where that is a module of ours."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from dict.fromkeys(name if name in OWN else str(node.module) for name in full)


def own_imports(parsed: ast.AST) -> list[str]:
    return [name for name in imported_modules(parsed) if name.partition(".")[0] == "ckptmgr"]


def is_allowed_inside(path: Path, node: ast.AST) -> bool:
    return named(path) in LAZY and not any(name.startswith("ckptmgr") for name in imported_modules(node))


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether it catches nearly everything and does not raise it again."""
    if ast.unparse(handler.body[-1]) == "raise":
        return False
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in caught)
