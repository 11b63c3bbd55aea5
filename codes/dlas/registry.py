"""Name -> component, found by reading source text so that nothing heavy is imported until a component is built.

A component registers itself where it is defined, and no other file needs an edit::

    @ARCHS.register("RRDBNet")
    class RRDBNet(nn.Module):
        def __init__(self, *, nf: PositiveInt = 64, ...): ...

Its options in YAML are the parameters of its signature. Positional-only parameters (before ``/``) are given by the program and
are not options. A trailing underscore is dropped (``in_`` is ``in`` in YAML).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from dlas.errors import ConfigurationError

T = TypeVar("T")
_PLUGIN_PREFIX = "dlas_plugin_"
PACKAGE_ROOT = Path(__file__).resolve().parent


class _Required:
    def __repr__(self) -> str:
        return "<required>"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Parameter:
    """One option of a component. `annotation` is its source text; `default` is `REQUIRED` where there is none."""

    name: str
    annotation: str = "Any"
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True)
class Entry:
    """What is known of a registered component without importing it."""

    kind: str
    name: str
    source: str  # a dotted module name, or the path of a plug-in file
    attribute: str
    parameters: tuple[Parameter, ...]
    accepts_any: bool = False  # the signature ends in **kwargs
    doc: str = ""
    aliases: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)  # class attributes with literal values

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments that YAML options stand for, defaults filled in."""
        defaults = {p.name: p.default for p in self.parameters if not p.required}
        return {**defaults, **{python_name(key, self): value for key, value in options.items()}}


def yaml_name(python_name: str) -> str:
    """`in_` -> `in`."""
    return python_name.rstrip("_")


def python_name(option: str, entry: Entry) -> str:
    """The parameter that takes a YAML option: `in` -> `in_` where the signature says so."""
    return option + "_" if entry.parameter(option + "_") else option


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was probably meant, or None."""
    lowered = {c.lower(): c for c in candidates}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


@dataclass
class Registry:
    """Components of one kind. `symbol` is the name of this object in source text, `package` where its components live."""

    kind: str
    symbol: str
    package: str
    _entries: dict[str, Entry] = field(default_factory=dict)
    _objects: dict[str, Any] = field(default_factory=dict)
    _scanned: bool = False

    def register(self, name: str, *aliases: str) -> Callable[[T], T]:
        """Decorator: makes the class or function below available as `name` (and `aliases`) in YAML."""

        def decorate(component: T) -> T:
            known = self._entries.get(name)
            if known is None:  # defined outside the scanned files: in a session, a notebook or a test
                self._add(_entry_of_object(self.kind, name, aliases, component))
            for each in (name, *aliases):
                self._objects[each] = component
            return component

        return decorate

    def entries(self) -> dict[str, Entry]:
        """All components by name (aliases not repeated)."""
        self._scan()
        return {name: entry for name, entry in sorted(self._entries.items()) if name == entry.name}

    def find(self, name: str) -> Entry:
        """The entry called `name`.

        Raises:
            ConfigurationError: the name is not registered; the nearest one is given.
        """
        self._scan()
        if name not in self._entries:
            close = nearest(name, self._entries)
            hint = f"did you mean '{close}'?" if close else f"known: {', '.join(self.entries()) or 'none'}"
            raise ConfigurationError(f"no {self.kind} is called '{name}'; {hint}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._scan()
        return name in self._entries

    def get(self, name: str) -> Any:
        """The component itself; imports the module that holds it."""
        entry = self.find(name)
        if name not in self._objects:
            module = _import(entry.source)
            self._objects[name] = getattr(module, entry.attribute)
        return self._objects[name]

    def create(self, name: str, options: Mapping[str, Any], *given: Any) -> Any:
        """Calls the component with what the program gives and the options of the YAML file.

        Raises:
            ConfigurationError: an option is unknown or missing.
        """
        entry = self.find(name)
        kwargs = {python_name(key, entry): value for key, value in options.items()}
        known = {p.name for p in entry.parameters}
        for key in options:
            if not entry.accepts_any and python_name(key, entry) not in known:
                close = nearest(key, (yaml_name(n) for n in known))
                hint = f"did you mean '{close}'?" if close else f"it takes: {', '.join(map(yaml_name, sorted(known)))}"
                raise ConfigurationError(f"{self.kind} '{name}' has no option '{key}'; {hint}")
        missing = [yaml_name(p.name) for p in entry.parameters if p.required and p.name not in kwargs]
        if missing:
            raise ConfigurationError(f"{self.kind} '{name}' needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}")
        return self.get(name)(*given, **kwargs)

    def named(self, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The name under `type` in an entry of YAML, and the other options, as `create` takes them.

        Raises:
            ConfigurationError: there is no `type`.
        """
        rest = dict(options)
        name = rest.pop("type", None)
        if name is None:
            raise ConfigurationError(f"a {self.kind} needs a type, one of: {', '.join(self.entries())}; given: {rest}")
        return name, rest

    def add_source(self, path: Path, source: str) -> None:
        """Reads the registrations of one more file. `source` says how to import it (module name or file path)."""
        for entry in _entries_of_file(path, source, self.kind, self.symbol):
            self._add(entry)

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        folder = PACKAGE_ROOT.joinpath(*self.package.split(".")[1:])
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(PACKAGE_ROOT).with_suffix("")
            parts = [p for p in relative.parts if p != "__init__"]
            self.add_source(path, ".".join(["dlas", *parts]))

    def _add(self, entry: Entry) -> None:
        for name in (entry.name, *entry.aliases):
            other = self._entries.get(name)
            if other is not None and (other.source, other.attribute) != (entry.source, entry.attribute):
                raise ConfigurationError(
                    f"the {self.kind} name '{name}' is registered twice: by {other.source}:{other.attribute} and by "
                    f"{entry.source}:{entry.attribute}; rename one"
                )
            self._entries[name] = entry


ARCHS = Registry("network", "ARCHS", "dlas.archs")
INJECTORS = Registry("injector", "INJECTORS", "dlas.injectors")
LOSSES = Registry("loss", "LOSSES", "dlas.losses")
DATASETS = Registry("dataset", "DATASETS", "dlas.data")
METRICS = Registry("metric", "METRICS", "dlas.metrics")
OPTIMIZERS = Registry("optimizer", "OPTIMIZERS", "dlas.optim")
SCHEDULES = Registry("schedule", "SCHEDULES", "dlas.optim")
DEGRADATIONS = Registry("degradation", "DEGRADATIONS", "dlas.degradations")
PROCESSES = Registry("process", "PROCESSES", "dlas.diffusion")
TIMES = Registry("distribution of times", "TIMES", "dlas.diffusion")
WEIGHTINGS = Registry("weighting", "WEIGHTINGS", "dlas.diffusion")
SAMPLERS = Registry("sampler", "SAMPLERS", "dlas.diffusion")
QUANTIZERS = Registry("quantizer", "QUANTIZERS", "dlas.layers")
REGISTRIES = (
    ARCHS, INJECTORS, LOSSES, DATASETS, METRICS, OPTIMIZERS, SCHEDULES, DEGRADATIONS, PROCESSES, TIMES, WEIGHTINGS, SAMPLERS,
    QUANTIZERS,
)  # fmt: skip


def load_plugin(reference: str, base: Path) -> str:
    """Makes the components of a user's file, folder or installed module available.

    Args:
        reference: a path (relative to `base`) of a .py file or a folder of them, or a dotted module name.
        base: folder of the YAML file that names the plug-in.

    Returns:
        The reference in a form that does not depend on `base`: it goes into the resolved file, which lies elsewhere.

    Raises:
        ConfigurationError: there is nothing at `reference`, or the file is not valid Python.
    """
    path = (base / reference).expanduser()
    if path.is_file():
        sources = [(path.resolve(), str(path.resolve()))]
    elif path.is_dir():
        sources = [(p.resolve(), str(p.resolve())) for p in sorted(path.rglob("*.py"))]
    else:
        sources = _module_files(reference, base)
    for file, source in sources:
        for registry in REGISTRIES:
            registry._scan()
            registry.add_source(file, source)
    return str(path.resolve()) if path.exists() else reference


def _module_files(module: str, base: Path) -> list[tuple[Path, str]]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            f"plugin '{module}': neither a file or folder (looked at {base / module}) nor an importable module; "
            "give a path relative to the YAML file, or install the module"
        )
    origin = Path(spec.origin)
    if not spec.submodule_search_locations:
        return [(origin, module)]
    found = []
    for path in sorted(origin.parent.rglob("*.py")):
        parts = [p for p in path.relative_to(origin.parent).with_suffix("").parts if p != "__init__"]
        found.append((path, ".".join([module, *parts])))
    return found


def _import(source: str) -> ModuleType:
    if not source.endswith(".py"):
        return importlib.import_module(source)
    name = f"{_PLUGIN_PREFIX}{Path(source).stem}_{zlib.crc32(source.encode()):x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, source)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            del sys.modules[name]
            raise ConfigurationError(f"plugin {source} cannot be imported: {error}") from error
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def entry_of_class(kind: str, name: str, path: Path) -> Entry | None:
    """What the source text of a class that is not registered says of its options; None if it is not in the file."""
    classes = {n.name: n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)}
    parameters, accepts_any = _parameters(classes[name], classes) if name in classes else (None, False)
    return None if parameters is None else Entry(kind, name, str(path), name, parameters, accepts_any)


def _entries_of_file(path: Path, source: str, kind: str, symbol: str) -> list[Entry]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if f"{symbol}.register(" not in text:
        return []
    try:
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        raise ConfigurationError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    entries = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for names in _registered_names(node, symbol, path):
            parameters, accepts_any = _parameters(node, classes)
            if parameters is None:  # the signature is inherited from another file
                entries.append(_entry_of_object(kind, names[0], names[1:], getattr(_import(source), node.name), source))
            else:
                facts = (parameters, accepts_any, _docstring(node), tuple(names[1:]), _literal_attributes(node, classes))
                entries.append(Entry(kind, names[0], source, node.name, *facts))
    return entries


def _registered_names(node: ast.ClassDef | ast.FunctionDef, symbol: str, path: Path) -> Iterable[list[str]]:
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Attribute)
            and decorator.func.attr == "register"
            and isinstance(decorator.func.value, ast.Name)
            and decorator.func.value.id == symbol
        ):
            try:
                yield [ast.literal_eval(argument) for argument in decorator.args]
            except ValueError as error:
                raise ConfigurationError(
                    f"{path}:{decorator.lineno}: {symbol}.register takes literal texts, since it is read and not run"
                ) from error


def _literal_attributes(node: ast.ClassDef | ast.FunctionDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, Any]:
    """What a class says of itself in literals, bases in the same file included: for instance `provides = ("lq", "hq")`."""
    if isinstance(node, ast.FunctionDef):
        return {}
    found: dict[str, Any] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found.update(_literal_attributes(classes[base.id], classes))
    for child in node.body:
        target = (
            child.targets[0] if isinstance(child, ast.Assign) else child.target if isinstance(child, ast.AnnAssign) else None
        )
        value = child.value if isinstance(child, ast.Assign | ast.AnnAssign) else None
        if isinstance(target, ast.Name) and value is not None:
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found


def _docstring(node: ast.ClassDef | ast.FunctionDef) -> str:
    own = ast.get_docstring(node) or ""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return "\n\n".join(filter(None, [own, ast.get_docstring(child)]))
    return own


def _parameters(
    node: ast.ClassDef | ast.FunctionDef, classes: Mapping[str, ast.ClassDef]
) -> tuple[tuple[Parameter, ...] | None, bool]:
    function: ast.FunctionDef | None
    if isinstance(node, ast.FunctionDef):
        function = node
    else:
        function = next((c for c in node.body if isinstance(c, ast.FunctionDef) and c.name == "__init__"), None)
        if function is None:
            bases = [b.id for b in node.bases if isinstance(b, ast.Name) and b.id in classes]
            return _parameters(classes[bases[0]], classes) if bases else (None, False)
    arguments = function.args
    plain = arguments.args
    if isinstance(node, ast.ClassDef) and not arguments.posonlyargs:
        plain = plain[1:]  # self
    first_default = len(plain) - len(arguments.defaults)
    found = []
    for position, argument in enumerate(plain):
        default = arguments.defaults[position - first_default] if position >= first_default else None
        found.append(_parameter(argument, default))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(_parameter(argument, default))
    return tuple(found), arguments.kwarg is not None


def _parameter(argument: ast.arg, default: ast.expr | None) -> Parameter:
    annotation = ast.unparse(argument.annotation) if argument.annotation else "Any"
    if default is None:
        return Parameter(argument.arg, annotation)
    try:
        return Parameter(argument.arg, annotation, ast.literal_eval(default))
    except ValueError:
        return Parameter(argument.arg, annotation, ast.unparse(default))


def _entry_of_object(kind: str, name: str, aliases: Iterable[str], component: Any, source: str | None = None) -> Entry:
    parameters = []
    accepts_any = False
    for parameter in inspect.signature(component).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            accepts_any = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            annotation = parameter.annotation
            text = "Any" if annotation is parameter.empty else annotation
            text = text if isinstance(text, str) else inspect.formatannotation(text)
            default = REQUIRED if parameter.default is parameter.empty else parameter.default
            parameters.append(Parameter(parameter.name, text, default))
    module = component.__module__
    where = source or (str(sys.modules[module].__file__) if module.startswith(_PLUGIN_PREFIX) else module)
    doc = inspect.getdoc(component) or ""
    members = {key: value for key, value in inspect.getmembers(component) if isinstance(value, str | int | tuple)}
    return Entry(kind, name, where, component.__qualname__, tuple(parameters), accepts_any, doc, tuple(aliases), members)
