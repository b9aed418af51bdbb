"""FreiHAND's JSON lists as arrays, and their cache."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.logging import MMLogger

from fastvit_dense.hand import freihand as json_arrays
from fastvit_dense.hand.freihand import load_json_array, parse_json_array


def write(path: Path, content: object, **kwargs: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content, **kwargs)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("shape", [(), (4,), (1, 61), (3, 2)], ids=str)
@pytest.mark.parametrize(
    "style",
    [{}, {"indent": 3}, {"separators": (",", ":")}, {"indent": 40}],
    ids=["python", "indented", "compact", "much white space"],
)
def test_parse_equals_json(tmp_path: Path, shape: tuple[int, ...], style: dict) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(23, *shape)) * 10.0 ** rng.integers(-12, 12, (23, *shape))
    values[0], values[-1] = 0, 123456
    content = values.tolist()
    content[1] = np.full(shape, 3, int).tolist()  # whole numbers without a point
    path = write(tmp_path / "a.json", content, **style)
    found = parse_json_array(path, shape)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(json.loads(path.read_text()), np.float32))


def test_no_entries(tmp_path: Path) -> None:
    assert parse_json_array(write(tmp_path / "a.json", " [ ] "), (3, 3)).shape == (0, 3, 3)


GOOD = [[0.5, 0.25], [1, 2]]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", ": .*EOF"),
        ("hello", ": "),
        ("3", ": number in the wrong place"),
        ({"xyz": [GOOD]}, ": start_map in the wrong place"),
        ("[[[1, 2], [3, x]]]", ", entry 0: "),
        ("[[[1, 2], [3, 4]] [[1, 2], [3, 4]]]", ", entry 1: "),
        ("[[[1, 2], [3, 4]],]", ", entry 1: "),
        ("[[[1, 2], [3, 4]]] []", ": .*trailing"),
        (json.dumps([GOOD, GOOD])[:-1], ", entry 2: .*EOF.*complete"),
        (json.dumps([GOOD, GOOD])[:-8], ", entry 1: .*EOF.*complete"),
        ("[[[1, 2], [3.", ", entry 0: "),
        ("[", ", entry 0: .*EOF"),
        ([GOOD, [[1, 2]]], ", entry 1: a list of 1, not 2"),
        ([GOOD, [1, 2]], ", entry 1: number in the wrong place"),
        ([GOOD, 3], ", entry 1: number in the wrong place"),
        ([GOOD, [GOOD, GOOD]], ", entry 1: start_array in the wrong place"),
        ([GOOD, GOOD, [[1, 2], [3]]], ", entry 2: a list of 1, not 2"),
        ([[[1, float("nan")], [3, 4]]], ", entry 0: "),
        ([GOOD, [[1, float("-inf")], [3, 4]]], ", entry 1: "),
        ("[[[1, 1e39], [3, 4]]]", ", entry 0: NaN, infinity or a number beyond float32"),
        ([GOOD, [[1, 10**400], [3, 4]]], ", entry 1: "),
        ([[["1", "2"], ["3", "4"]]], ", entry 0: string in the wrong place"),
        ([[[1, None], [3, 4]]], ", entry 0: null in the wrong place"),
        ([[[True, False], [True, True]]], ", entry 0: boolean in the wrong place"),
        ([[[1, {}], [3, 4]]], ", entry 0: start_map in the wrong place"),
        ("[" * 100_000, ", entry 0: start_array in the wrong place"),
    ],
)
def test_bad_file(tmp_path: Path, content: object, place: str) -> None:
    path = write(tmp_path / "training_xyz.json", content)
    with pytest.raises(ValueError, match=rf"training_xyz.json( \(\d+ bytes\))?{place}"):
        load_json_array(path, (2, 2))


def test_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[\xff\xfe" + bytes(100))
    with pytest.raises(ValueError, match=r"a.json \(103 bytes\), entry 0: "):
        parse_json_array(tmp_path / "a.json", ())


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no.json does not exist"):
        load_json_array(tmp_path / "no.json", (2, 2))


@pytest.fixture
def verts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is large enough for a cache."""
    monkeypatch.setattr(json_arrays, "_CACHE_FROM", 100)
    return write(tmp_path / "training_verts.json", np.arange(60.0).reshape(10, 2, 3).tolist())


def test_cache_is_mapped_and_not_parsed_again(verts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_json_array(verts, (2, 3))
    monkeypatch.setattr(json_arrays, "parse_json_array", None)
    second = load_json_array(verts, (2, 3))
    for array in (first, second):
        assert isinstance(array, np.memmap) and not array.flags.writeable
        np.testing.assert_array_equal(array, np.arange(60).reshape(10, 2, 3))
    (cache,) = verts.parent.glob("*.npy")
    assert cache.name.startswith("training_verts.json.")
    assert {p.name for p in verts.parent.iterdir()} == {verts.name, cache.name}


def test_cache_of_a_changed_file_is_replaced(verts: Path) -> None:
    load_json_array(verts, (2, 3))
    status = verts.stat()
    text = verts.read_text().replace("59.0", "77.0")
    write(verts, text)  # of the same size
    os.utime(verts, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load_json_array(verts, (2, 3))[-1, -1, -1] == 77
    assert len(list(verts.parent.glob("*.npy"))) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:-20]),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"not numpy's"),
        lambda p: p.write_bytes(pickle.dumps([1])),
        lambda p: np.save(p, np.zeros((10, 2, 3))),
        lambda p: np.save(p, np.zeros((10, 3, 2), np.float32)),
    ],
    ids=["cut", "empty", "text", "pickle", "float64", "shape"],
)
def test_damaged_cache_is_not_used(verts: Path, damage: object) -> None:
    load_json_array(verts, (2, 3))
    (cache,) = verts.parent.glob("*.npy")
    damage(cache)  # type: ignore[operator]
    np.testing.assert_array_equal(load_json_array(verts, (2, 3)), np.arange(60).reshape(10, 2, 3))
    assert isinstance(np.load(cache, mmap_mode="r"), np.memmap)


def test_folder_without_write_permission(
    verts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    MMLogger.get_instance("test_hand_json")
    other = write(verts.with_name("training_xyz.json"), verts.read_text())

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    # For root, every folder is writable.
    monkeypatch.setattr(json_arrays.np, "save", refuse)
    for path in (verts, other):
        array = load_json_array(path, (2, 3))
        assert not isinstance(array, np.memmap) and not array.flags.writeable
        np.testing.assert_array_equal(array, np.arange(60).reshape(10, 2, 3))
    said = capsys.readouterr()
    assert (said.out + said.err).count("takes no cache of training_") == 2
    assert {p.name for p in verts.parent.iterdir()} == {verts.name, other.name}


def test_small_file_has_no_cache(tmp_path: Path) -> None:
    load_json_array(write(tmp_path / "a.json", [GOOD]), (2, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="resource is of Unix")
def test_memory_is_that_of_the_result(tmp_path: Path) -> None:
    """22 MB of text, and 64 MB of Python objects at once, make 4 MB of float32."""
    entry = json.dumps((np.random.default_rng(0).normal(size=(778, 3))).tolist())
    path = write(tmp_path / "verts.json", "[" + ", ".join([entry] * 430) + "]")
    assert path.stat().st_size > 20e6
    script = (
        "import resource, sys\n"
        "from fastvit_dense.hand.freihand import parse_json_array\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "parse_json_array(sys.argv[1], (778, 3))\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    kibibytes = int(done.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kibibytes < 16 * 1024
