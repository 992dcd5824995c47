"""Exports load where nothing of rankfront is, unpickle nothing, and say in one error that they are damaged."""

import io
import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from deployed import deployed, noise
from hostile import mutations

from trainers.batches import normalize
from trainers.errors import CheckpointError
from trainers.export.formats import METADATA
from trainers.export.graph_record import RecordedNetwork
from trainers.export.integrity import UNSEALED, seal
from trainers.export.load import load
from trainers.export.options import FORMATS, ExportOptions
from trainers.export.write import export_model

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def data():
    return noise(SHAPE)


@pytest.fixture(scope="module")
def saved(data):
    return deployed("tiny", SHAPE, data=data)


@pytest.fixture(scope="module")
def files(tmp_path_factory, saved, data):
    """One network in all formats, as network.<format>."""
    folder = tmp_path_factory.mktemp("files")
    return {f: export_model(saved, data, folder / f"network.{f}", ExportOptions(f)).path for f in FORMATS}


# what a fresh environment does not have is found nowhere
BLOCKED = """
import sys
class Fresh:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Fresh(finder) for finder in sys.meta_path]
"""
OURS = {"trainers", "orchestrator", "search_spaces"}
OTHERS = {"ray", "mlflow", "optuna", "torchvision", "onnx", "onnxscript", "pyarrow", "sklearn", "PIL", "pydantic"}


@pytest.mark.parametrize(
    ("format_", "missing"),
    [
        ("pt2", {"onnxruntime", "safetensors"}),
        ("onnx", {"torch", "safetensors"}),
        ("safetensors", {"onnxruntime"}),
    ],
)
def test_the_documented_loaders_run_without_rankfront(pytestconfig, files, saved, data, format_, missing, tmp_path):
    text = (pytestconfig.rootpath / "docs" / "export.md").read_text()
    (snippet,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f".{format_}" in block]
    code = BLOCKED.format(blocked=OURS | OTHERS | missing) + snippet
    code += "\nimport json\nprint(json.dumps([images.tolist(), logits.tolist()]))\n"
    (tmp_path / files[format_].name).write_bytes(files[format_].read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    images, logits = json.loads(done.stdout.splitlines()[-1])
    with torch.no_grad():
        expected = saved.model.eval()(normalize(torch.tensor(images, dtype=torch.uint8), data, torch.float32))
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)


def test_nothing_is_unpickled(files, tmp_path):
    """Python tells of every class that a pickle asks for; so does a loader that is known to unpickle."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled.pt")
    code = f"""
import sys
asked = []
sys.addaudithook(lambda event, args: asked.append(args) if event == "pickle.find_class" else None)
import torch, trainers
torch.load({str(tmp_path / "pickled.pt")!r}, weights_only=False)
assert asked
asked.clear()
for file in {[str(path) for path in files.values()]!r}:
    trainers.load(file)(torch.zeros((2, 1, 8, 8), dtype=torch.uint8))
assert not asked, asked
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("format_", FORMATS)
class TestDamage:
    def test_a_truncated_file(self, files, format_, tmp_path):
        content = files[format_].read_bytes()
        for size in (0, 1, 7, 100, len(content) // 2, len(content) - 1):
            check_refused(tmp_path / f"n.{format_}", content[:size])

    def test_a_changed_byte(self, files, format_, tmp_path):
        content = files[format_].read_bytes()
        for place in np.linspace(0, len(content) - 1, 25).astype(int):
            changed = bytearray(content)
            changed[place] ^= 0x10
            if format_ == "pt2" and reads_the_same(content, bytes(changed)):
                continue  # padding between the parts of an archive, or a date
            check_refused(tmp_path / f"n.{format_}", bytes(changed))

    def test_a_foreign_file(self, files, format_, tmp_path):
        file = io.BytesIO()
        torch.save({"a": torch.ones(3)}, file)
        for content in (
            b"hello " * 100,
            bytes(1000),
            file.getvalue(),
            *(files[f].read_bytes() for f in FORMATS if f != format_),
        ):
            check_refused(tmp_path / f"n.{format_}", content)

    def test_another_version(self, files, format_, tmp_path):
        content = files[format_].read_bytes()
        if format_ == "pt2":
            content = rezipped(
                content, lambda name, part: part.replace(b'"version": 1', b'"version": 2') if "extra" in name else part
            )
        else:
            digest = re.search(rb"rankfront-sha256:[0-9a-f]{64}", content)[0]
            old, new = (
                (b'version\\": 1', b'version\\": 2') if format_ == "safetensors" else (b'"version": 1', b'"version": 2')
            )
            content = seal(content.replace(digest, UNSEALED.encode()).replace(old, new, 1))
        check_refused(tmp_path / f"n.{format_}", content, "must have version 1, but has 2")

    def test_a_file_that_is_not_there(self, format_, tmp_path):
        with pytest.raises(CheckpointError, match="must be an export, but there is none"):
            load(tmp_path / f"n.{format_}")


def check_refused(path, content, text="."):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=text) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1


def reads_the_same(content, changed):
    """Whether two archives have the same parts, names and all."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as one, zipfile.ZipFile(io.BytesIO(changed)) as other:
            return all(one.read(name) == other.read(name) for name in {*one.namelist(), *other.namelist()})
    except (zipfile.BadZipFile, KeyError, NotImplementedError):
        return False


def rezipped(content, change, extra=()):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
        for name, part in extra:
            target.writestr(name, part)
    return file.getvalue()


def test_foreign_files_of_the_same_kind(tmp_path, saved):
    from safetensors.torch import save

    example = torch.zeros(2, *SHAPE)
    torch.export.save(torch.export.export(saved.model.eval(), (example,)), tmp_path / "n.pt2")
    check_refused(tmp_path / "n.pt2", (tmp_path / "n.pt2").read_bytes(), "was written by something else")
    check_refused(tmp_path / "n.safetensors", save({"a": torch.ones(2)}), "was written by something else")
    with pytest.raises(CheckpointError, match=r"must be an export or a model file \(.pt2, .onnx, .safetensors, .pt\)"):
        load(tmp_path / "n.bin")


class TestMalice:
    """What a file could make a loader do, and does not."""

    def test_parts_of_an_archive_that_would_be_unpickled_or_run(self, files, tmp_path):
        content = files["pt2"].read_bytes()
        root = zipfile.ZipFile(io.BytesIO(content)).namelist()[0].partition("/")[0]

        def pickled_inputs(name, part):
            return b"pickle" if name.endswith("sample_inputs/model.pt") else part

        def pickled_weights(name, part):
            return (
                part.replace(b'"use_pickle": false', b'"use_pickle": true')
                if name.endswith("weights_config.json")
                else part
            )

        check_refused(tmp_path / "n.pt2", rezipped(content, pickled_inputs), "nothing that is unpickled or run")
        check_refused(
            tmp_path / "n.pt2", rezipped(content, pickled_weights), "nothing that is unpickled or run, .* weight_0"
        )
        for name in ("data/aotinductor/model/a.so", "data/constants/custom_obj_0", "data/weights/model.pt"):
            added = rezipped(content, lambda name, part: part, [(f"{root}/{name}", b"")])
            check_refused(tmp_path / "n.pt2", added, f"nothing that is unpickled or run, but this one has {name}")

    @pytest.mark.parametrize(
        ("node", "text"),
        [
            (["a", "aten.from_file.default", ["/etc/passwd"], {}], "it calls 'aten.from_file.default'"),
            (["a", "operator.methodcaller", ["x"], {}], "it calls 'operator.methodcaller'"),
            (["a", "os.system", ["true"], {}], "it calls 'os.system'"),
            (["a", "aten.__class__.__init__", [], {}], "it calls"),
            (["a", "aten.relu.default", [{"value": "b"}], {}], "names 'b'"),
            (["a", "aten.relu.default", [{"torch": "load"}], {}], "names 'load'"),
        ],
    )
    def test_a_record_calls_and_names_only_what_it_may(self, node, text):
        record = {"input": "x", "parameters": [], "nodes": [node], "output": "a"}
        with pytest.raises(CheckpointError, match=text):
            RecordedNetwork(record, {})


def test_the_metadata_key_is_the_documented_one(pytestconfig):
    text = (pytestconfig.rootpath / "docs" / "export.md").read_text()
    assert f"`extra/{METADATA}.json`" in text


class TestHostile:
    @pytest.mark.parametrize("format_", FORMATS)
    def test_a_damaged_one_is_refused_or_whole(self, files, tmp_path, format_):
        images = torch.arange(2 * 64, dtype=torch.uint8).reshape(2, *SHAPE)
        expected, refused = load(files[format_])(images), 0
        path = tmp_path / f"network.{format_}"
        for content in mutations(files[format_].read_bytes(), 24):
            path.write_bytes(content)
            try:
                found = load(path)
            except CheckpointError:
                refused += 1
            else:
                assert torch.equal(found(images), expected)
        assert refused > 12

    def forged(self, files, tmp_path, change):
        """A pt2 export whose program was changed, its checksums right."""
        path = tmp_path / "forged.pt2"
        with zipfile.ZipFile(files["pt2"]) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                if name.endswith("models/model.json"):
                    content = json.dumps(change(json.loads(content))).encode()
                target.writestr(name, content)
        return path

    @pytest.mark.parametrize(
        "code", ["__import__('os').mkdir('{0}')", "exit()", "9**9**9", "Symbol('s1', real=exit())"]
    )
    def test_code_in_a_size_is_not_run(self, files, tmp_path, code):
        def change(program):
            text = json.dumps(program)
            old = text[text.index('"expr_str": ') :].partition(', "hint"')[0]
            return json.loads(text.replace(old, f'"expr_str": {json.dumps(code.format(tmp_path / "made"))}'))

        with pytest.raises(CheckpointError, match="sizes must be arithmetic alone"):
            load(self.forged(files, tmp_path, change))
        assert not (tmp_path / "made").exists()

    def test_code_in_a_guard_is_not_run(self, files, tmp_path):
        code = f"__import__('os').mkdir({str(tmp_path / 'made')!r}) is None"
        with pytest.raises(CheckpointError, match="must hold no guards"):
            load(self.forged(files, tmp_path, lambda program: {**program, "guards_code": [code]}))
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        "target", ["torch.load", "torch.ops.aten.from_file.default", "torch.hub.load", "math.exp", "#x:y"]
    )
    def test_no_other_function_is_called(self, files, tmp_path, target):
        def change(program):
            program["graph_module"]["graph"]["nodes"][0]["target"] = target
            return program

        with pytest.raises(CheckpointError, match="must call ATen's functions of tensors alone"):
            load(self.forged(files, tmp_path, change))

    def test_weights_of_other_files_are_not_read(self, files, tmp_path, monkeypatch):
        import onnx

        model = onnx.load_model_from_string(files["onnx"].read_bytes())
        tensor = model.graph.initializer[0]
        size = len(tensor.raw_data)
        (tmp_path / "secret").write_bytes(b"\1" * size)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "secret"), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        (entry,) = [each for each in model.metadata_props if each.key == "rankfront"]
        entry.value = json.dumps({**json.loads(entry.value), "digest": "rankfront-sha256:" + "0" * 64})
        path = tmp_path / "network.onnx"
        path.write_bytes(seal(model.SerializeToString()))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match="must hold its own weights"):
            load(path)
