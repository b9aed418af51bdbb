"""MANO's files: what is read, and all that is refused."""

import copyreg
import pickle
import runpy
import struct
import sys
import types
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, run_tool
from random_mano import random_mano
from scipy import sparse
from scipy.spatial.transform import Rotation

from fastvit_dense.hand.mano import get_mano
from fastvit_dense.hand.mano.arrays import Mano, is_right_hand
from fastvit_dense.hand.mano.file import load_mano, save_mano
from fastvit_dense.hand.mano.topology import PARENTS


class Python2Pickler(pickle._Pickler):
    """Writes text, bytes and names of modules as Python 2 did, with numpy 1 and the scipy of its time."""

    dispatch = pickle._Pickler.dispatch.copy()
    modules = {
        "builtins": "__builtin__",
        "copyreg": "copy_reg",
        "numpy._core.multiarray": "numpy.core.multiarray",
        "scipy.sparse._csc": "scipy.sparse.csc",
        "scipy.sparse._csr": "scipy.sparse.csr",
    }

    def save_text(self, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = self.modules.get(obj.__module__, obj.__module__)
        self.write(pickle.GLOBAL + f"{module}\n{obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = save_text
    dispatch[types.FunctionType] = save_global


def chumpy(name: str, **state: Any) -> Any:
    """An object that is pickled as one of chumpy's, which is not installed."""
    module, _, name = f"chumpy.{name}".rpartition(".")
    thing = type(name, (), {"__module__": module})()
    thing.__dict__.update(
        state, _dirty_vars=set(), _itr=None, _depends_on_deps={"r": {"deps": None}}
    )
    return thing


def selected(array: np.ndarray) -> Any:
    """chumpy's selection of the first half of a longer array: what MANO's `shapedirs` are."""
    longer = np.concatenate([array, -array], axis=-1)
    numbers = np.arange(longer.size).reshape(longer.shape)[..., : array.shape[-1]]
    return chumpy(
        "reordering.Select",
        a=chumpy("ch.Ch", x=longer),
        idxs=numbers.ravel(),
        preferred_shape=array.shape,
    )


def contents(mano: Mano, **other: Any) -> dict[str, Any]:
    """What is in MANO's own file, with the types that are there, but for `other`."""
    return {
        "v_template": mano.template,
        "f": mano.faces.astype(np.uint32),
        "kintree_table": np.array([[2**32 - 1, *PARENTS[1:]], range(16)]),
        "shapedirs": mano.shape_directions,
        "posedirs": np.asfortranarray(mano.pose_directions),
        "J_regressor": sparse.csc_matrix(mano.joint_regressor),
        "weights": mano.skinning_weights,
        "hands_components": mano.pose_components,
        "hands_mean": mano.pose_mean,
        "J": np.zeros((16, 3)),
        "bs_style": "lbs",
        "number": np.float64(1.5),
        **other,
    }


def write(path: Path, content: Any, *, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_python2(path: Path, content: Any, *, protocol: int = 2) -> Path:
    with path.open("wb") as file:
        Python2Pickler(file, protocol=protocol).dump(content)
    return path


def assert_same(found: Mano, wanted: Mano) -> None:
    for field in fields(Mano):
        a, b = getattr(found, field.name), getattr(wanted, field.name)
        assert a.dtype == b.dtype and np.array_equal(a, b), field.name


@pytest.fixture(scope="module")
def mano() -> Mano:
    return random_mano()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "MANO_RIGHT.pkl"


def test_file_as_it_is_distributed(mano: Mano, path: Path) -> None:
    write_python2(path, contents(mano, shapedirs=selected(mano.shape_directions)))
    head = path.read_bytes()
    for name in (
        b"chumpy.reordering\nSelect",
        b"scipy.sparse.csc\n",
        b"numpy.core.m",
        b"__builtin__\nset",
    ):
        assert name in head
    assert_same(load_mano(path), mano)
    assert_same(get_mano(path), mano)
    assert "chumpy" not in sys.modules


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "form", [sparse.csc_matrix, sparse.csr_matrix, sparse.csr_array, np.asarray]
)
def test_rewritten_by_python_3(mano: Mano, path: Path, protocol: int, form: Any) -> None:
    entries = contents(mano, J_regressor=form(mano.joint_regressor), posedirs=mano.pose_directions)
    assert_same(load_mano(write(path, entries, protocol=protocol)), mano)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_kinds_of_chumpy(mano: Mano, path: Path, protocol: int) -> None:
    flat = chumpy("ch.Ch", x=mano.template.ravel())
    entries = contents(
        mano,
        v_template=chumpy("ch.Ch", x=mano.template),
        weights=chumpy("Ch", x=chumpy("ch.Ch", x=mano.skinning_weights)),
        hands_mean=chumpy(
            "reordering.Select", a=chumpy("Ch", x=mano.pose_mean), idxs=np.arange(45)
        ),
        J=chumpy(
            "ch.MatVecMult", mtx=sparse.csc_matrix(np.eye(3)), vec=flat
        ),  # not needed, not read
    )
    assert_same(load_mano(write_python2(path, entries, protocol=protocol)), mano)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8"])
def test_other_types_of_numbers(mano: Mano, path: Path, dtype: str) -> None:
    rounded = replace(mano, template=mano.template.astype(np.float32), pose_mean=np.zeros(45))
    entries = contents(rounded, hands_mean=np.zeros(45, dtype))
    entries["v_template"] = rounded.template.astype(">f4")
    entries["kintree_table"] = np.array([PARENTS, range(16)], np.int32)
    assert_same(load_mano(write_python2(path, entries)), rounded)


def test_npz(mano: Mano, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "mano.npz"
    for _ in range(2):  # an older one is replaced
        save_mano(mano, out)
    assert [p.name for p in out.parent.iterdir()] == ["mano.npz"]
    assert_same(load_mano(out), mano)
    with np.load(out, allow_pickle=False) as file:
        assert set(file.files) == set(contents(mano)) - {"J", "bs_style", "number"}


def test_npz_is_whole_or_not_there(
    mano: Mano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mano.npz"
    out.write_text("older")

    def fail(file: Any, **_: Any) -> None:
        file.write(b"PK")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space"):
        save_mano(mano, out)
    assert [p.name for p in tmp_path.iterdir()] == ["mano.npz"] and out.read_text() == "older"
    with pytest.raises(ValueError, match="ends in .npz, got .*mano.pkl"):
        save_mano(mano, tmp_path / "mano.pkl")


def test_arrays_cannot_be_changed(mano: Mano) -> None:
    with pytest.raises(ValueError, match="read-only"):
        mano.template[0] = 0
    with pytest.raises(FrozenInstanceError):
        mano.template = mano.template + 1  # type: ignore[misc]
    given = mano.template.copy()
    made = replace(mano, template=given)
    given[0] = 7
    assert_same(made, mano)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        get_mano(tmp_path / "MANO_RIGHT.pkl")
    message = str(caught.value)
    for part in (
        "MANO_RIGHT.pkl does not exist",
        "https://mano.is.tue.mpg.de",
        "tools/convert_mano.py",
    ):
        assert part in message
    assert 'mano="synthetic"' in message
    with pytest.raises(ValueError, match="is a folder"):
        load_mano(tmp_path)


@pytest.mark.parametrize("named", ["MANO_RIGHT.pkl", "MANO_RIGHT.npz"])
def test_the_other_format_is_found(
    mano: Mano, tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("fastvit_dense.hand.mano.print_log", lambda text, **_: said.append(text))
    pickled, plain = write(tmp_path / "MANO_RIGHT.pkl", contents(mano)), tmp_path / "MANO_RIGHT.npz"
    save_mano(mano, plain)
    path, other = (pickled, plain) if named.endswith("pkl") else (plain, pickled)
    get_mano(path)
    assert not said, "it is there under its own name"
    path.unlink()
    assert_same(get_mano(str(path)), mano)
    assert said == [f"MANO: {path} does not exist, {other} is read"]


# What is refused. Each program makes a folder {trace} when a plain unpickler reads it.

PROGRAMS = {
    "REDUCE": ("os.mkdir", b"cos\nmkdir\n(V{trace}\ntR."),
    "INST": ("os.mkdir", b"(V{trace}\nios\nmkdir\n."),
    "OBJ": ("os.mkdir", b"(cos\nmkdir\nV{trace}\no."),
    "STACK_GLOBAL": ("os.mkdir", b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93V{trace}\n\x85R."),
    # tuple.__new__(tuple, map.__new__(map, os.mkdir, [trace]))
    "NEWOBJ": (
        "tuple",
        b"\x80\x02c__builtin__\ntuple\nc__builtin__\nmap\ncos\nmkdir\n](V{trace}\ne\x86\x81\x85\x81.",
    ),
    # An object whose __setstate__ is set by a first BUILD and called by a second.
    "BUILD": (
        "argparse.Namespace",
        b"\x80\x02cargparse\nNamespace\n)\x81}V__setstate__\ncos\nmkdir\nsbV{trace}\nb.",
    ),
    "getattr": (
        "getattr",
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(Vos\ntRVmkdir\ntR(V{trace}\ntR.",
    ),
    "dotted name": (
        "fastvit_dense.hand.mano.file.os.mkdir",
        b"\x80\x04\x8c\x1cfastvit_dense.hand.mano.file\x8c\x08os.mkdir\x93V{trace}\n\x85R.",
    ),
    "eval": ("eval", b"c__builtin__\neval\n(V__import__('os').mkdir('{trace}')\ntR."),
    "partial": ("functools.partial", b"cfunctools\npartial\n(cos\nmkdir\nV{trace}\ntR(tR."),
    "numpy": ("numpy.save", b"cnumpy\nsave\n(V{trace}\nI1\ntR."),
    "a method of numpy": (
        "numpy.ndarray.tofile",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93cnumpy\narange\nK\x01\x85RV{trace}\n\x86R.",
    ),
    "pickle": ("pickle.loads", b"c_pickle\nloads\n(Ccos\nmkdir\n(V{trace}\ntR.tR."),
    "EXT": ("os.mkdir", b"\x80\x02\x82\xf0V{trace}\n\x85R."),
}  # fmt: skip


@pytest.fixture
def extension() -> Any:
    copyreg.add_extension("os", "mkdir", 240)
    yield
    copyreg.remove_extension("os", "mkdir", 240)
    copyreg.clear_extension_cache()


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.parametrize("where", ["alone", "in an entry"])
def test_programs_are_not_run(
    mano: Mano, tmp_path: Path, path: Path, kind: str, where: str
) -> None:
    trace = tmp_path / "trace"
    name, program = PROGRAMS[kind]
    program = program.replace(b"{trace}", str(trace).encode())
    if kind == "pickle":  # a string of bytes, with its length
        start = program.index(b"(C") + 2
        inner = program[start : program.index(b"tR.tR.") + 3]
        program = program[:start] + bytes([len(inner)]) + program[start:]
    if where == "in an entry":
        protocol = program[:2] if program.startswith(b"\x80") else b"\x80\x02"
        entries = pickle.dumps(contents(mano), protocol=2)[2:-1]
        program = protocol + entries + b"(Vextra\n" + program.removeprefix(protocol)[:-1] + b"u."
    path.write_bytes(program)
    with pytest.raises(
        ValueError, match=rf"MANO_RIGHT.pkl .* uses \w*\.?{name}, which may run code"
    ):
        load_mano(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["MANO_RIGHT.pkl"]
    # It would have done it.
    pickle.loads(program)
    assert any(p.name.startswith("trace") for p in tmp_path.iterdir())


def test_chumpy_is_not_imported(
    mano: Mano, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor anything by its name, whoever put it there."""
    write_python2(path, contents(mano, shapedirs=selected(mano.shape_directions)))
    package = tmp_path / "chumpy"
    package.mkdir()
    for name in ("__init__", "ch", "reordering"):
        (package / f"{name}.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        pickle.loads(path.read_bytes(), encoding="latin1")
    assert_same(load_mano(path), mano)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cchumpy.ch\nCh\n}V__new__\ncchumpy.ch\nSelect\nsb.",  # state for the class itself
        b"\x80\x02cchumpy.ch\nCh\nN}Vorigin\nVos.mkdir\ns\x86b.",
        b"\x80\x02cchumpy.ch\nCh\n)\x81)R.",  # calls an object
        b"Vos.mkdir\n(tR.",
    ],
)
def test_stand_ins_stay_as_they_are(mano: Mano, path: Path, program: bytes) -> None:
    path.write_bytes(program)
    with pytest.raises(ValueError, match="it is no pickle, or a damaged .*TypeError"):
        load_mano(path)
    assert_same(load_mano(write(path, contents(mano))), mano)


def test_pointers_to_elsewhere(path: Path) -> None:
    path.write_bytes(b"Pfile:///etc/passwd\n.")
    with pytest.raises(ValueError, match="persistent"):
        load_mano(path)


@pytest.mark.parametrize("suffix", [".pkl", ".npz"])
def test_truncated(mano: Mano, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mano{suffix}"
    if suffix == ".npz":
        save_mano(mano, path)
    else:
        write_python2(path, contents(mano))
    whole = path.read_bytes()
    for length in [0, 1, 2, 5, 30, *np.linspace(100, len(whole) - 1, 20).astype(int)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"mano{suffix} is no usable MANO_RIGHT: .*damaged"):
            load_mano(path)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html>\n<html>Log in</html>", b"text", bytes(100), b"PK\3\4"]
)
def test_neither_pickle_nor_npz(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"MANO_RIGHT.pkl is no usable MANO_RIGHT: .*damaged"):
        load_mano(path)


def test_damaged_within(mano: Mano, tmp_path: Path) -> None:
    save_mano(mano, tmp_path / "mano.npz")
    content = bytearray((tmp_path / "mano.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "mano.npz").write_bytes(content)
    with pytest.raises(ValueError, match="damaged .npz.*CRC"):
        load_mano(tmp_path / "mano.npz")


def other(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[3] = value
    return array


WRONG: dict[str, tuple[Any, str]] = {
    "a body": (
        lambda m: {"v_template": np.zeros((6890, 3))},
        r"template must be .*of \(6890, 3\)",
    ),
    "21 joints": (
        lambda m: {"J_regressor": np.ones((21, 778)) / 778},
        r"joint_regressor must be .*shape \(16, 778\), got .*\(21, 778\)",
    ),
    "20 betas": (
        lambda m: {"shapedirs": np.zeros((778, 3, 20))},
        "shape_directions must be .*shape",
    ),
    "NaN": (
        lambda m: {"posedirs": other(m.pose_directions, np.nan)},
        "pose_directions must be finite",
    ),
    "infinity": (lambda m: {"hands_mean": other(m.pose_mean, -np.inf)}, "pose_mean must be finite"),
    "objects": (
        lambda m: {"weights": m.skinning_weights.astype(object)},
        "weights .*Python objects",
    ),
    "complex": (lambda m: {"v_template": m.template + 0j}, "v_template .*array of numbers.*c16"),
    "text": (
        lambda m: {"v_template": m.template.astype(str)},
        "v_template .*array of numbers.*U32",
    ),
    "a list": (
        lambda m: {"hands_mean": m.pose_mean.tolist()},
        "hands_mean .*expected an array, got list",
    ),
    "faces that are no integers": (
        lambda m: {"f": m.faces / 2},
        "faces must be integers .*got float64",
    ),
    "faces of others": (
        lambda m: {"f": other(m.faces, 778)},
        "faces .* from 0 to 777, got .* 0 to 778",
    ),
    "negative faces": (
        lambda m: {"f": other(m.faces, -1)},
        "faces .* from 0 to 777, got .* -1 to 777",
    ),
    "weights": (
        lambda m: {"weights": m.skinning_weights * 2},
        "rows of skinning_weights must add up to 1",
    ),
    "another tree": (
        lambda m: {"kintree_table": np.array([(-1, *range(15)), range(16)])},
        r"kintree_table must have MANO's tree of joints, \[root, 0, 1, 2, 0, 4",
    ),
    "a tree of 24": (
        lambda m: {"kintree_table": np.zeros((2, 24), int)},
        "kintree_table must have",
    ),
    "a computation": (
        lambda m: {"v_template": chumpy("ch_ops.sin", x=chumpy("Ch", x=m.template))},
        "v_template .*chumpy.ch_ops.sin is a computation",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_contents(mano: Mano, path: Path, case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ValueError, match=rf"MANO_RIGHT.pkl is no usable MANO_RIGHT: .*{message}"):
        load_mano(write_python2(path, contents(mano, **change(mano))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "dictionary of arrays, got list"),
        ({}, "lacks v_template, f, shapedirs, .*kintree_table"),
    ],
)
def test_other_objects(path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_mano(write(path, content))


def test_arrays_that_claim_too_much(mano: Mano, path: Path) -> None:
    """Numbers of bytes and indices that numpy and scipy would follow beyond the memory that is theirs."""
    changes = {
        "_shape": (2**40, 778),
        "indices": np.full(778, 99),
        "indptr": np.arange(779) * 2**40,
    }
    for name, value in [*changes.items(), ("indices", np.full(778, -1))]:
        matrix = sparse.csc_matrix(mano.joint_regressor)
        setattr(matrix, name, value)
        with pytest.raises(ValueError, match="J_regressor cannot be read"):
            load_mano(write(path, contents(mano, J_regressor=matrix)))
    loop = chumpy("ch.Ch")
    loop.x = loop
    with pytest.raises(ValueError, match="v_template cannot be read"):
        load_mano(write_python2(path, contents(mano, v_template=loop)))
    whole = write(path, contents(mano), protocol=2).read_bytes()
    path.write_bytes(whole.replace(b"M\x0a\x03K\x03\x86", b"M\x0b\x03K\x03\x86", 1))
    with pytest.raises(ValueError, match=r"cannot reshape array of size 2334 into shape \(779,3\)"):
        load_mano(path)


def test_objects_in_npz(mano: Mano, tmp_path: Path) -> None:
    np.savez(tmp_path / "mano.npz", **contents(mano))  # with a sparse matrix
    with pytest.raises(ValueError, match="one with Python objects"):
        load_mano(tmp_path / "mano.npz")


# Left and right.


def mirrored(mano: Mano, axis: int) -> Mano:
    """The other hand, as MANO_LEFT is to MANO_RIGHT: directions of turning mirror the other way."""
    mirror = np.ones(3)
    mirror[axis] = -1
    return replace(
        mano,
        template=mano.template * mirror,
        faces=mano.faces[:, ::-1],
        pose_mean=(mano.pose_mean.reshape(15, 3) * -mirror).ravel(),
    )


@pytest.mark.parametrize("source", ["random", "synthetic"])
@pytest.mark.parametrize("axis", range(3))
def test_left_hand(path: Path, axis: int, source: str) -> None:
    mano = random_mano() if source == "random" else get_mano("synthetic")
    assert is_right_hand(mano) and is_right_hand(mirrored(mirrored(mano, axis), (axis + 1) % 3))
    left = mirrored(mano, axis)
    assert not is_right_hand(left)
    with pytest.raises(
        ValueError, match="it is a left hand, such as MANO_LEFT. Expected the right one"
    ):
        load_mano(write_python2(path, contents(left)))


def with_one_sign(mano: Mano, sign: str) -> Mano:
    """A hand of which only the thumb, or only the bending of the fingers, tells where the palm is."""
    if sign == "thumb":
        return replace(mano, pose_mean=np.zeros(45))
    bent = np.zeros((15, 3))
    bent[:12, 2] = 0.5  # about z, from -x to -y: to the palm
    joint = np.arange(778) % 16
    flat = (mano.joint_regressor @ mano.template) * [1, 0, 1]
    return replace(
        mano,
        template=flat[joint],  # each vertex is at its joint
        joint_regressor=np.eye(16)[:, joint] / np.bincount(joint)[:, None],
        pose_mean=bent.ravel(),
    )


@pytest.mark.parametrize("sign", ["thumb", "fingers"])
def test_hands_in_other_frames(mano: Mano, sign: str) -> None:
    right = with_one_sign(mano, sign)
    for turn in Rotation.random(20, rng=np.random.default_rng(0)).as_matrix():
        for hand in (right, mirrored(right, 0)):
            placed = replace(
                hand,
                template=1000 * hand.template @ turn.T + 50,
                pose_mean=(hand.pose_mean.reshape(15, 3) @ turn.T).ravel(),
            )
            assert is_right_hand(placed) == (hand is right)


# The tool.


def test_convert(mano: Mano, path: Path, tmp_path: Path) -> None:
    write_python2(path, contents(mano, shapedirs=selected(mano.shape_directions)))
    out = tmp_path / "data" / "mano.npz"
    text = run_tool("tools/convert_mano.py", path, out)
    for part in ("a right hand, 778 vertices", "research only"):
        assert part in text
    assert_same(load_mano(out), mano)


def test_convert_refuses(
    mano: Mano, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, contents(mirrored(mano, 0)))
    out = path.with_suffix(".npz")
    out.write_text("older")
    for options, message in (
        ([], "exists; pass --force to replace it"),
        (["--force"], "a left hand"),
    ):
        monkeypatch.setattr(sys, "argv", ["convert_mano.py", str(path), str(out), *options])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "tools/convert_mano.py"), run_name="__main__")
        assert caught.value.code == 2 and message in capsys.readouterr().err
        assert out.read_text() == "older"
