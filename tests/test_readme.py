"""The README's code runs as it stands."""

import re


def test_the_python_example_runs(pytestconfig, tmp_path, monkeypatch, capsys):
    text = (pytestconfig.rootpath / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 + 20 + 10
    assert float(lines[-1].split()[1]) > 0.9  # the last validation accuracy
