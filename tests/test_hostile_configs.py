"""Configurations that nobody should write: each is refused by one clear error, or is valid, soon, and nothing is written."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config import load_config
from orchestrator.paths import SweepPaths
from orchestrator.plan import plan_sweep
from orchestrator.tracking.target import tracking_target
from orchestrator.yaml_source import parse_override
from trainers.errors import ConfigError, DataError, RankfrontError, SweepError

EXAMPLES = [path.read_text() for path in sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))]
MINIMAL = "name: x\nmodel: {name: tiny}\ndata: {name: digits}\n"
MOST_PLANS = 6  # a plan draws from the search space 200 times

WORDS = (
    "", "null", "~", "nan", ".nan", ".inf", "-1", "0", "1e999", "9" * 400, "9" * 5000, "0x", "0o8", "1_0", "yes",
    "!!int x",
    "!!bool x", "!!float x", "!!map [1]", "!!set {a}", "!!binary '&'", "2001-99-99", "12:61:99", "*a", "&a",
    "&a [*a]", "<<: *a",
    "[", "]", "{", "}", "[[[[[[[[", "? ", "- ", "|", ">", "%", "@", "`", "'", '"', "\t", "\0", "\x1b[2J", "\ud7ff",
    "../../etc",
    "/etc/passwd", "~nobody-here/x", "x" * 300, "s3://key:hunter2@bucket", "file:///etc", "os:system", "sys:exit",
    "a:b", ":", "é",
    "!!python/object/apply:os.system [true]", '"\\ud800"', '"\\0"', "--- ", "... ", "#", "<<", "mlp", "parquet",
    "imagefolder",
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(WORDS),
    st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70),
    st.lists(st.integers(-1, 3) | st.text(max_size=3), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=3), max_size=3),
    st.text(max_size=20),
)
often = settings(
    max_examples=170, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def mutated_text(draw):
    """An example's text, cut, repeated and written over in up to four places."""
    text = draw(st.sampled_from(EXAMPLES))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        middle = draw(st.sampled_from(WORDS) | st.text(max_size=6) | st.just(text[start:end] * 3))
        text = text[:start] + middle + text[end:]
    return text


@st.composite
def mutated_tree(draw):
    """An example's settings with up to three of them replaced, removed, renamed or added, at any depth."""
    tree = yaml.safe_load(draw(st.sampled_from(EXAMPLES)))
    for _ in range(draw(st.integers(1, 3))):
        section = tree
        while (inner := [value for value in section.values() if isinstance(value, dict)]) and draw(st.booleans()):
            section = draw(st.sampled_from(inner))
        key = draw(st.sampled_from(sorted(section, key=str))) if section else "new"
        what = draw(st.sampled_from(("replace", "replace", "remove", "rename", "add")))
        value = section.pop(key, None) if what in ("remove", "rename") else draw(VALUES)
        if what != "remove":
            section[key if what == "replace" else draw(st.text(max_size=6) | st.sampled_from(WORDS))] = value
    return tree


class Folder:
    """A file for a configuration, in a folder where nothing else may appear."""

    def __init__(self, root):
        self.root, self.file, self.plans = root, root / "sweep.yaml", 0

    def check(self, content):
        self.file.write_bytes(content)
        before = Path("/etc/passwd").stat().st_mtime_ns
        with suppress(RankfrontError):
            config = load_config(self.file)
            if self.plans < MOST_PLANS:
                self.plans += 1
                plan_sweep(config)
        assert os.listdir(self.root) == ["sweep.yaml"]
        assert self.file.read_bytes() == content
        assert Path("/etc/passwd").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("configs"))


@often
@given(mutated_text())
def test_mutated_text_is_refused_or_valid(folder, text):
    folder.check(text.encode(errors="surrogatepass"))


@often
@given(mutated_tree())
def test_mutated_settings_are_refused_or_valid(folder, tree):
    folder.check(yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass"))


def bomb(inner, join, depth=9):
    """Each line holds nine times the one before."""
    lines = [f"a0: &a0 {inner}"]
    lines += [f"a{i}: &a{i} {join([f'*a{i - 1} '] * 9)}" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 3000, "nested too deeply"),
        ("name: &a [*a]", "with aliases written out"),
        (bomb("[1, 1]", lambda parts: f"[{', '.join(parts)}]"), "at most 20,000 values"),
        (
            bomb("{k: 1}", lambda parts: "{" + ", ".join(f"k{i}: {p}" for i, p in enumerate(parts)) + "}"),
            "at most 20,000",
        ),
        (bomb("{k: 1}", lambda parts: f"{{<<: [{', '.join(parts)}]}}"), "at most 20,000 values"),
        ("x" * 2**18 + ": 1", "at most 262,144 bytes"),
        ("name: 2001-99-99", "must be valid YAML"),
        ("2001-01-01: 1", "a key must be a word"),
        ("? [1]\n: 1", "a key must be a word"),
        ('name: "\\ud800"', "surrogates not allowed"),
        (MINIMAL + "latency: {foo: 1}", "unknown key 'foo'"),
        (MINIMAL + f"search: {{num_trials: {'9' * 400}}}", "below 2^63"),
        (MINIMAL + f"search: {{num_trials: {'9' * 5000}}}", "must be valid YAML"),
        (MINIMAL.replace("name: x", f"name: {'x' * 300}"), "at most 200 bytes"),
        (MINIMAL.replace("tiny", "mlp, hidden: [4611686018427387904]"), "sizes that a tensor can have"),
        (MINIMAL + "search_space: sys:exit", "must return settings for any trial"),
        (MINIMAL + "search_space: this_is_none:x", "must be importable"),
        (MINIMAL + "search: {warm_start: ~nobody-here}", "must be the output directory of an earlier sweep"),
        (MINIMAL.replace("digits", 'digits, root: "a\\0b"'), "without control characters"),
        (MINIMAL.replace("digits", 'digits, root: "a\\e[2Jb"'), "without control characters"),
        (MINIMAL.replace("digits", f"digits, root: {'y' * 5000}"), "at most 4,000 bytes"),
        (MINIMAL.replace("digits", "parquet, root: ~nobody-here/x"), "data.root must begin with"),
        (MINIMAL.replace("digits", "mnist, root: ~nobody-here/x"), "data.root must begin with"),
        (MINIMAL.replace("digits", "imagefolder, image_size: 8, root: /dev/null"), "has no class folders"),
    ],
)
def test_what_is_refused_says_why(tmp_path, text, message):
    (tmp_path / "sweep.yaml").write_bytes(text.encode())
    with pytest.raises((ConfigError, DataError)) as caught:
        plan_sweep(load_config(tmp_path / "sweep.yaml"))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_a_password_in_a_path_is_not_repeated(tmp_path):
    (tmp_path / "sweep.yaml").write_text(MINIMAL.replace("digits", "digits, root: 's3://me:hunter2@bucket'"))
    with pytest.raises(ConfigError, match=r"must be a folder, but is a URL \(s3://\.\.\.\)") as caught:
        load_config(tmp_path / "sweep.yaml", ["search.warm_start='http://me:hunter2@host/x'"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: None])
def test_what_is_no_file_is_not_read(tmp_path, make):
    make(tmp_path / "sweep.yaml")
    with pytest.raises(ConfigError, match="must be a readable YAML file"):
        load_config(tmp_path / "sweep.yaml")


@settings(max_examples=60, derandomize=True)
@given(st.text(max_size=12) | st.sampled_from(WORDS).map(lambda word: f"search.seed={word}"))
def test_overrides_are_refused_or_valid(text):
    with suppress(ConfigError):
        parse_override(text)


@pytest.mark.parametrize("name", ["~nobody-here/x", "a\0b", "a\x1b[2Jb", "a\nb"])
def test_an_output_directory_has_a_path_that_can_be(name):
    with pytest.raises(SweepError, match="a path must"):
        SweepPaths.of(Path(name))


@pytest.mark.parametrize("mark", "?#%")
def test_the_default_store_lies_in_the_output_directory(tmp_path, monkeypatch, mark):
    """SQLAlchemy would take what follows for options, and write a file of another name."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    paths = SweepPaths.of(tmp_path / f"a{mark}b")
    with pytest.raises(SweepError, match="must have no"):
        tracking_target("x", paths.mlflow_db, paths.mlflow_artifacts)
