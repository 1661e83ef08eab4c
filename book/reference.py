"""The pages of the reference, made from the source of the package: nothing is imported."""
import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "isd_nb"
CELL = re.compile(r"^# %% (?:\.\./)*(nbs/\S+)\.ipynb #")  # nbdev's line above every exported cell


@dataclass(frozen=True)
class Name:
    "A public name of the package."
    module: str  # without the package's name, e.g. "engine.runs"
    name: str
    source: str  # its header as it stands in the source, with the comments beside the arguments
    doc: str  # the docstring; of a value, the comment beside it
    notebook: str = ""  # that defines it, relative to the root and without its ending
    raises: tuple[str, ...] = ()  # what the code of a function or a class raises itself
    origin: str = ""  # of a name that is defined elsewhere: the module
    kind: str = "function"  # "function", "class" or "value"

    @property
    def label(self) -> str:
        "The target of links to it; it has no capitals, so the kind keeps `Score` and `score` apart."
        return f"api-{self.kind}-{self.module}-{self.name}".replace(".", "-").replace("_", "-").lower()


def public_names(path: Path) -> list[str]:
    "What a module's `__all__` lists."
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [e.value for e in node.value.elts]
    return []


def header_of(node: ast.AST, lines: list[str]) -> str:
    "The lines of a definition up to its docstring or first statement."
    body = node.body[1:] if ast.get_docstring(node) else node.body
    first = node.body[0].lineno - 1
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    head = lines[start:first]
    if isinstance(node, ast.ClassDef):
        fields = [n for n in body if isinstance(n, ast.AnnAssign)]
        methods = [n for n in body if isinstance(n, ast.FunctionDef) and (n.name == "__init__" or n.name[0] != "_")]
        head += [lines[i] for n in fields for i in range(n.lineno - 1, n.end_lineno)]
        for method in methods:
            head += ["", *header_of(method, lines).splitlines()]
    return "\n".join(head)


def raised_by(node: ast.AST) -> tuple[str, ...]:
    "The exceptions that stand behind a `raise` in this code."
    found = [n.exc.func for n in ast.walk(node) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    return tuple(sorted({f.id for f in found if isinstance(f, ast.Name)}))


def assigned(node: ast.AST) -> list[str]:
    "The names that a statement gives a value to."
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [n.id for target in targets for n in getattr(target, "elts", [target]) if isinstance(n, ast.Name)]


def comment_of(node: ast.AST, lines: list[str]) -> str:
    "What the comments on the lines of a value say, or else those right above it."
    beside = [line.partition("  # ")[2] for line in lines[node.lineno - 1:node.end_lineno] if "  # " in line]
    above, number = [], node.lineno - 2
    while number >= 0 and lines[number].startswith("# ") and not lines[number].startswith("# %%"):
        above.insert(0, lines[number][2:])
        number -= 1
    helps = [k.value for k in ast.walk(node) if isinstance(k, ast.keyword) and k.arg == "help"]  # of a command's option
    parts = [part for h in helps[:1] for part in getattr(h, "values", [h])]  # an f-string has several
    option = "".join(p.value if isinstance(p, ast.Constant) else "..." for p in parts)
    return (beside[0] if beside else " ".join(above) or option).strip()


def module_of_import(node: ast.ImportFrom, module: str, is_package: bool = False) -> str:
    "The module of this package that a relative import names."
    here = module.split(".") if is_package else module.split(".")[:-1]
    return ".".join([*here[:len(here) - node.level + 1], *(node.module or "").split(".")]).strip(".")


def names_of(path: Path, module: str) -> Iterator[Name]:
    "The public names of a module: functions, classes, values, and what it offers of other modules."
    text = path.read_text()
    wanted, lines = public_names(path), text.splitlines()
    notebook, marks = "", {}
    for number, line in enumerate(lines, 1):
        if found := CELL.match(line):
            notebook = found.group(1)
        marks[number] = notebook
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in wanted:
            yield Name(module, node.name, header_of(node, lines), ast.get_docstring(node) or "", marks[node.lineno],
                       raised_by(node), kind="class" if isinstance(node, ast.ClassDef) else "function")
        elif isinstance(node, ast.ImportFrom) and node.level:
            for name in [alias.asname or alias.name for alias in node.names]:
                if name in wanted:
                    kind = "class" if name[0].isupper() else "value"
                    yield Name(module, name, "", "", marks[node.lineno], (), module_of_import(node, module), kind)
        for name in assigned(node):
            if name in wanted:
                source = "\n".join(lines[node.lineno - 1:min(node.end_lineno, node.lineno + 19)])
                yield Name(module, name, source, comment_of(node, lines), marks[node.lineno], kind="value")


def notebook_of(path: Path) -> str:
    "The notebook that a module comes from, relative to the root, without its ending; empty where none does."
    found = re.search(r"File to edit: (?:\.\./)*(nbs/\S+)\.ipynb", path.read_text())
    return found.group(1) if found else ""


def package_modules() -> dict[str, Path]:
    "Every module that a notebook exports, by name."
    found = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
    return {name: path for name, path in found.items() if notebook_of(path)}


def front_names() -> dict[str, str]:
    "The names that `import isd_nb` offers, and the module of each."
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and assigned(node) == ["_PLACES"]:
            return ast.literal_eval(node.value)
    return {}


def entry(name: Name, titles: dict[str, str], labels: dict[tuple[str, str], Name]) -> list[str]:
    "What the page of a module says about one of its names."
    lines = [f"({name.label})=", f"## `{name.name}`", ""]
    if name.origin:
        target = labels.get((name.origin, name.name))
        there = f"[`isd_nb.{name.origin}`](#{target.label})" if target else f"`isd_nb.{name.origin}`"
        return [*lines, f"Defined in {there}, and offered here as well.", ""]
    lines += [name.doc, "", "```python", name.source, "```", ""]
    if name.raises:
        lines += [f"Raises {', '.join(f'`{r}`' for r in name.raises)}.", ""]
    if name.notebook in titles:
        lines += [f"Source and tests: [{titles[name.notebook]}](/{name.notebook}.ipynb).", ""]
    return lines


def write_reference(out: Path,
                    titles: dict[str, str],  # of the notebooks of the site
                    modules: dict[str, Path],
                    ) -> dict[str, Name]:  # names that one module alone defines
    "A page for every module, and one that lists them."
    found = {module: list(names_of(path, module)) for module, path in modules.items()}
    labels = {(n.module, n.name): n for names in found.values() for n in names}
    rows = []
    for module, names in found.items():
        if not names:
            continue
        about = ast.get_docstring(ast.parse(modules[module].read_text())) or ""
        page = [f"# `isd_nb.{module}`", "", about, ""]
        for name in names:
            page += entry(name, titles, labels)
        (out / f"{module}.md").write_text("\n".join(page))
        rows.append((module, about))
    lines = ["# Reference", "", "Every public name, by module. Comments beside arguments give shapes and units.", "",
             "## `import isd_nb`", "", "| name | |", "|---|---|"]
    for name, module in front_names().items():
        if module not in modules:
            continue
        target = labels[module, name]
        target = labels.get((target.origin, name), target)
        lines.append(f"| [`{name}`](#{target.label}) | {target.doc.splitlines()[0] if target.doc else ''} |")
    lines += ["", "## By module", "", "| module | |", "|---|---|"]
    lines += [*(f"| [`{m}`]({m}.md) | {about} |" for m, about in rows), ""]
    lines += ["```{toctree}", ":hidden:", "", *(f"{m} <{m}>" for m, _ in rows), "```", ""]
    (out / "index.md").write_text("\n".join(lines))
    defined: dict[str, list[Name]] = {}
    for name in labels.values():
        if not name.origin:
            defined.setdefault(name.name, []).append(name)
    spellings = Counter(name.lower() for name in defined)  # targets do not know capitals
    return {name: many[0] for name, many in defined.items()
            if len(many) == 1 and spellings[name.lower()] == 1 and many[0].kind != "value"}
