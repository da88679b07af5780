"""Every script, flag, setting, file and link that the documentation names exists."""

import contextlib
import functools
import importlib
import io
import re
import runpy
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.helpers.stages import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PAGES += sorted([ROOT / "benchmarks" / "RESULTS.md", ROOT / "tests" / "README.md"])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

# Programs of other projects: their flags are not ours to check.
OTHERS = "torchrun pip dask kaggle tensorboard pytest git uv ruff mypy pre-commit docker".split()
OUR_SHELL_SCRIPTS = {"demo.sh": [], "test.sh": ["--all"]}
PYTHONS = {"python", "python3"}
OUR_MODULES = ("benchmarks", r"docs\.pictures", "pneumothorax")
OUR_FOLDERS = "benchmarks configs docs models pneumothorax tests".split()


class Command(NamedTuple):
    """One command line of a page: KEY=VALUE before it, the program, and everything after it."""

    line: str
    variables: dict[str, str]
    program: str  # 00_prepare_data.py, pneumothorax.phantom, demo.sh, torchrun, ...
    arguments: list[str]

    @property
    def flags(self) -> list[str]:
        found = (argument.split("=")[0] for argument in self.arguments)
        return [flag for flag in found if re.fullmatch(r"--[a-z][a-z-]*", flag)]


def code_of(text: str) -> tuple[list[str], list[str]]:
    """Lines of code blocks, continued ones joined, and pieces of inline code."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = "\n".join(re.findall(r"^ {4}(\S.*|\s+\S.*)$", prose, re.MULTILINE))
    blocks = re.sub(r"\\\n\s*", "", "\n".join([*fenced, indented]))
    prose = re.sub(r"^ {4}.*$", "", prose, flags=re.MULTILINE)
    return blocks.splitlines(), re.findall(r"`([^`\n]+)`", prose)


def command(line: str) -> Command | None:
    """The command of a line, None where it holds none of a program that we know."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    variables = {}
    while words and re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    if words and words[0] in PYTHONS:
        words = words[2:] if words[1:2] == ["-m"] else words[1:]
    if not words:
        return None
    program = words[0].removeprefix("./").removeprefix(".venv/bin/")
    if program == "torchrun":  # its own flags, then `--`, then one of our scripts
        script = next((word for word in words[1:] if word.endswith(".py")), None)
        if script is None:
            return Command(line, variables, program, words[1:])
        return Command(line, variables, script, words[words.index(script) + 1 :])
    is_script = re.fullmatch(r"(?!test_)[0-9a-z_]+\.py", program) is not None
    is_module = re.fullmatch(rf"(?:{'|'.join(OUR_MODULES)})\.[a-z_]+", program) is not None
    if is_script or is_module or program in (*OUR_SHELL_SCRIPTS, *OTHERS):
        return Command(line, variables, program, words[1:])
    return None


def commands(text: str) -> Iterator[Command]:
    blocks, inline = code_of(text)
    for line in [*blocks, *inline]:
        if found := command(line):
            yield found


@functools.cache
def known_flags(program: str) -> frozenset[str]:
    """The flags of one of our own programs, from the parser itself."""
    if program in OUR_SHELL_SCRIPTS:
        return frozenset(OUR_SHELL_SCRIPTS[program])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as left:
        if program.endswith(".py"):
            runpy.run_path(str(ROOT / program), run_name="stage")["main"](["--help"])
        else:
            help_of_module(program)
    assert left.value.code == 0
    usage = printed.getvalue().split("\n\n")[0]
    return frozenset(re.findall(r"--[a-z][a-z-]*", usage)) | {"--help"}


def help_of_module(name: str) -> None:
    """`python -m NAME --help` in this process."""
    is_package = (ROOT / name.replace(".", "/")).is_dir()
    module = importlib.import_module(f"{name}.__main__" if is_package else name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [name, "--help"])
        module.main()


def exists(program: str) -> bool:
    if program.endswith((".py", ".sh")):
        return (ROOT / program).is_file()
    path = ROOT / program.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def of_ours(text: str) -> list[Command]:
    return [one for one in commands(text) if one.program not in OTHERS]


def unknown_programs(text: str) -> list[str]:
    return sorted({one.program for one in of_ours(text) if not exists(one.program)})


def unknown_flags(text: str) -> list[str]:
    """Of commands; each flag with its program and line."""
    return [
        f"{one.program} {flag}: {one.line}"
        for one in of_ours(text)
        for flag in one.flags
        if exists(one.program) and flag not in known_flags(one.program)
    ]


def unknown_flags_alone(text: str) -> list[str]:
    """Of inline code that is not a whole command, such as `--fold K`: of no program of ours."""
    pieces = [code for code in code_of(text)[1] if not command(code)]
    named = {flag for code in pieces for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)}
    scripts = [path.name for path in ROOT.glob("*.py")]
    assert len(scripts) > 5
    return sorted(named.difference(*(known_flags(one) for one in [*scripts, *OUR_SHELL_SCRIPTS])))


def unread_variables(text: str) -> list[str]:
    """Given to demo.sh, but not read by our shell scripts or by the libraries."""
    shell = "".join(path.read_text("utf-8") for path in ROOT.glob("*.sh"))
    given = {name for one in of_ours(text) if one.program == "demo.sh" for name in one.variables}
    return sorted(
        name for name in given - {"OMP_NUM_THREADS"} if not re.search(rf"\${{?{name}\b", shell)
    )


def unknown_settings(text: str) -> list[str]:
    from pneumothorax.training.config import TrainConfig

    given = set(re.findall(r"--set ([a-z_]+)", text)) - {"key"}
    for one in of_ours(text):
        given.update(re.findall(r"([a-z_]+)=", one.variables.get("SETTINGS", "")))
    return sorted(given - set(TrainConfig.model_fields))


def missing_files(text: str) -> list[str]:
    top = "|".join(OUR_FOLDERS)
    named = re.findall(rf"(?<![\w/.-])(?:{top})/[\w./*-]*\w", text)
    named += re.findall(r"(?<![\w/.-])[\w-]+\.toml|requirements[\w-]*\.txt", text)
    return sorted({name for name in named if not list(ROOT.glob(name))})


@pytest.fixture(params=PAGES, ids=NAMES)
def page(request):
    return request.param


@pytest.fixture
def text(page):
    return page.read_text("utf-8")


def test_the_pages_hold_many_commands_flags_configs_and_links():
    everything = "\n".join(page.read_text("utf-8") for page in PAGES)
    ours = of_ours(everything)
    assert len(PAGES) >= 12
    assert len(ours) > 50
    assert len({one.program for one in ours}) >= 10
    assert sum(len(one.flags) for one in ours) > 50
    assert len(set(re.findall(r"configs/[\w./*-]+", everything))) > 8
    assert len(re.findall(r"\]\([^)]+\)", everything)) > 20


def test_every_stage_and_tool_is_shown_in_the_readme():
    shown = {one.program for one in of_ours((ROOT / "README.md").read_text("utf-8"))}
    assert {path.name for path in ROOT.glob("*.py")} - shown == set()


def test_every_program_of_this_repository_exists(text):
    assert unknown_programs(text) == []


def test_every_flag_of_a_command_is_known_to_its_program(text):
    assert unknown_flags(text) == []


def test_every_flag_named_alone_is_known_to_some_program(text):
    assert unknown_flags_alone(text) == []


def test_every_variable_given_to_the_demo_is_read_by_it(text):
    assert unread_variables(text) == []


def test_every_setting_changed_is_a_setting(text):
    assert unknown_settings(text) == []


def test_every_file_named_exists(text):
    assert missing_files(text) == []


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (unknown_programs, "`python 06_upload.py`"),
        (unknown_programs, "    python -m benchmarks.nothing --size 3"),
        (unknown_flags, "```\npython 01_make_folds.py --fold 3\n```"),
        (unknown_flags, "    torchrun --nnodes 2 -- 02_train.py --batch-size 3"),
        (unknown_flags, "    INPUT=siim ./demo.sh --all"),
        (unknown_flags_alone, "with `--epochs 3`"),
        (unread_variables, "    INPUT=siim GPU=1 ./demo.sh"),
        (unknown_settings, "    python 02_train.py --set epoch=3"),
        (unknown_settings, "    SETTINGS='epochs=3 size=64' ./demo.sh"),
        (missing_files, "in `configs/demo/nothing.yaml`"),
        (missing_files, "requirements-gpu.txt"),
    ],
)
def test_a_planted_mistake_is_noticed(check, text):
    assert len(check(text)) == 1


def test_every_setting_in_the_table_of_settings_is_a_setting():
    from pneumothorax.training.config import TrainConfig

    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    table = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`([a-z_]+)`", row)}
    assert len(named) > 8
    assert named - set(TrainConfig.model_fields) == set()


def test_every_code_in_the_table_of_rejections_is_one_of_the_package():
    source = "".join(path.read_text("utf-8") for path in (ROOT / "pneumothorax").rglob("*.py"))
    text = (ROOT / "docs" / "faults.md").read_text("utf-8")
    codes = re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE)
    assert len(codes) > 10
    assert [code for code in codes if f'"{code}"' not in source] == []


def test_every_link_leads_somewhere(page, text):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
            assert anchor in {anchor_of(heading) for heading in headings}, f"{target}#{anchor}"


def anchor_of(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("line", "program", "flags"),
    [
        ("python 02_train.py --run a --fold 0  # one --fold", "02_train.py", ["--run", "--fold"]),
        ("torchrun --nnodes 2 -- 02_train.py --config c", "02_train.py", ["--config"]),
        ("OUTPUT=o CONFIGS='a b' ./demo.sh", "demo.sh", []),
        ("python -m pneumothorax.phantom --to x", "pneumothorax.phantom", ["--to"]),
        ("python -m dask worker --nworkers 2", "dask", ["--nworkers"]),
    ],
)
def test_a_command_line_is_understood(line, program, flags):
    found = command(line)
    assert (found.program, found.flags) == (program, flags)


@pytest.mark.parametrize(
    "line",
    ["siim_dice", "image_size: 512", "../demo/x.yaml", "it's", "pneumothorax", "test_docs.py"],
)
def test_text_that_is_not_a_command_is_not_taken_for_one(line):
    assert command(line) is None
