"""Data sets: search order, checksums, downloads from a local server, and the real data where DLOPT_DATA has it."""

import gzip
import hashlib
import http.server
import io
import json
import os
import socket
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dlopt.tasks import data
from dlopt.tasks.data import DataUnavailable, Table, files
from dlopt.tasks.data.tables import classified

REAL = os.environ.get("DLOPT_DATA")
real = pytest.mark.skipif(not REAL, reason="DLOPT_DATA is not set")


def sha(raw):
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test, and no DLOPT_DATA."""
    monkeypatch.setenv("DLOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DLOPT_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def here(monkeypatch):
    """DLOPT_DATA as it was outside of the tests."""
    monkeypatch.setenv("DLOPT_DATA", REAL)
    return Path(REAL)


@pytest.fixture
def server():
    """A local server. `pages` maps a path to (status, body, claimed length); `asked` lists the paths of requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body, length = pages.get(self.path, (404, b"", 0))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    pages, asked = {}, []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    running.pages, running.asked, running.base = pages, asked, f"http://127.0.0.1:{running.server_port}"
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def pinned(name, contents):
    """The declaration of a data set with the checksums of fabricated files, given as {relative path: bytes}."""
    spec = data.find(name)
    return replace(spec, files=tuple(replace(file, sha256=sha(contents[file.path])) for file in spec.files))


def serve(server, spec, contents):
    for file in spec.files:
        body = contents[file.path]
        server.pages["/" + file.urls[0].split("/", 3)[3]] = (200, body, len(body))


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes(), mtime=0)


def fake_mnist():
    random = np.random.default_rng(0)
    contents = {}
    for part, n in (("train", 7), ("t10k", 3)):
        contents[f"MNIST/raw/{part}-images-idx3-ubyte.gz"] = idx(random.integers(256, size=(n, 28, 28), dtype=np.uint8))
        contents[f"MNIST/raw/{part}-labels-idx1-ubyte.gz"] = idx(np.arange(n, dtype=np.uint8))
    return contents


def fake_cifar(names=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"), cut=0):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for place, name in enumerate(names):
            records = np.full((2, 3073), place, dtype=np.uint8)
            records[:, 0] = [place, 9 - place]
            records[:, 1 + 1024] = 100 + place  # first pixel of the green plane
            raw = records.tobytes()[: 2 * 3073 - cut]
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return {"cifar10/cifar-10-binary.tar.gz": out.getvalue()}


def put(folder, contents):
    for path, raw in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(raw)


def kept(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def moments(images):
    """(means, standard deviations) of the training images per channel to four digits, exactly, from their histogram."""
    values = torch.arange(256).double() / images.scale
    mean, std = [], []
    for channel in images.x_train.unbind(1):
        share = channel.flatten().bincount(minlength=256).double() / channel.numel()
        mean.append((share * values).sum())
        std.append((share * (values - mean[-1]).square()).sum().sqrt())
    return tuple(round(m.item(), 4) for m in mean), tuple(round(s.item(), 4) for s in std)


# ---- the registry, search order and checksums


def test_every_data_set_is_declared_in_full():
    assert {"digits", "mnist", "cifar10", "cifar10-jpeg", "stdlib-text", "libsvm:abalone_scale"} <= set(data.names())
    for name in data.names():
        spec = data.find(name)
        assert spec.summary
        assert spec.licence
        assert spec.files or spec.fingerprint
        assert not spec.files or all(f.urls for f in spec.files) or spec.help, f"{name} does not say how to get it"
        for part, pin in data.identity(name).items():
            assert len(pin) == 64, part
            assert int(pin, 16) >= 0


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(DataUnavailable, match=r"no data set is called 'minst' \(did you mean mnist\?\)"):
        data.get("minst")


def test_identity_is_known_without_the_data_and_nobody_is_asked(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a host was contacted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert data.identity("cifar10-jpeg")["cifar10/train.parquet"].startswith("b01207e9")
    for name in ("mnist", "cifar10", "cifar10-jpeg", "libsvm:a1a", "gutenberg-books", "tinyshakespeare"):
        with pytest.raises(DataUnavailable):
            data.get(name)


def test_message_where_data_is_missing(monkeypatch, tmp_path, cache):
    with pytest.raises(DataUnavailable) as caught:
        data.get("mnist")
    text = str(caught.value)
    for part in (
        "'mnist'",
        "MNIST/raw/train-images-idx3-ubyte.gz",
        str(cache / "data"),
        "dlopt data get mnist",
        "amazonaws",
    ):
        assert part in text
    assert "(DLOPT_DATA" not in text
    monkeypatch.setenv("DLOPT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataUnavailable, match=r"nowhere \(DLOPT_DATA, no such folder\) and .* \(the cache"):
        data.get("mnist")
    with pytest.raises(DataUnavailable, match="no public download: its two parquet files") as caught:
        data.get("cifar10-jpeg")
    assert "dlopt data get cifar10-jpeg" not in str(caught.value)


def test_search_order_is_dlopt_data_then_the_cache(tmp_path, cache, monkeypatch):
    contents = fake_mnist()
    spec = pinned("mnist", contents)
    put(cache / "data", contents)
    assert files.locate("mnist", spec.files)[spec.files[0].path].is_relative_to(cache)
    put(tmp_path / "mine", {spec.files[0].path: contents[spec.files[0].path]})
    monkeypatch.setenv("DLOPT_DATA", str(tmp_path / "mine"))
    found = files.locate("mnist", spec.files)
    assert [path.is_relative_to(tmp_path / "mine") for path in found.values()] == [True, False, False, False]


def test_a_file_that_is_not_the_pinned_one_is_refused_not_passed_over(tmp_path, cache, monkeypatch):
    contents = fake_mnist()
    spec = pinned("mnist", contents)
    put(cache / "data", contents)
    put(tmp_path / "mine", {spec.files[0].path: b"other"})
    monkeypatch.setenv("DLOPT_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataUnavailable, match=f"is not the pinned file: its sha256 is {sha(b'other')}, expected"):
        data.get(spec)


def test_a_broken_compressed_text_is_refused(cache):
    spec = data.find("tinyshakespeare")
    put(cache / "data", {spec.files[0].path: gzip.compress(b"x" * 1000)[:-9]})
    with pytest.raises(DataUnavailable, match=r"cannot be read .*; replace or delete it"):
        data.get(spec)


def test_checksums_are_remembered_until_the_file_changes(cache, monkeypatch):
    contents = fake_cifar()
    spec = pinned("cifar10", contents)
    put(cache / "data", contents)
    hashed = []
    original = files.digest
    monkeypatch.setattr(files, "digest", lambda *a: hashed.append(a) or original(*a))
    path = files.locate("cifar10", spec.files)[spec.files[0].path]
    assert len(hashed) == 1
    monkeypatch.setattr(files, "_seen", {})  # as a new process
    files.locate("cifar10", spec.files)
    assert len(hashed) == 1
    os.utime(path, ns=(1, 1))
    files.locate("cifar10", spec.files)
    assert len(hashed) == 2
    (cache / "verified.json").write_text("{ broken")
    monkeypatch.setattr(files, "_seen", {})
    files.locate("cifar10", spec.files)
    assert len(hashed) == 3
    assert str(path.resolve()) in json.loads((cache / "verified.json").read_text())


def test_cache_dir(monkeypatch, tmp_path):
    assert data.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("DLOPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_dir().name == "dlopt"


def test_decoded_arrays_are_kept_and_made_again_when_broken(cache, monkeypatch):
    made = []

    def make():
        made.append(1)
        return np.arange(6)

    for _ in range(2):
        assert files.decoded("k", make).tolist() == list(range(6))
    assert len(made) == 1
    (cache / "decoded" / "k.npy").write_bytes((cache / "decoded" / "k.npy").read_bytes()[:-8])
    assert files.decoded("k", make).tolist() == list(range(6))
    assert len(made) == 2
    assert kept(cache) == ["decoded/k.npy"]
    (cache / "file").touch()
    monkeypatch.setenv("DLOPT_CACHE", str(cache / "file"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert files.decoded("k", make).tolist() == list(range(6))


def test_a_missing_package_is_a_sentence():
    with pytest.raises(ImportError, match=r"digits needs no_such_package: pip install 'dlopt\[lab\]'"):
        files.require("no_such_package.part", "digits")


# ---- downloads


def test_download_of_mnist(server, cache):
    contents = fake_mnist()
    spec = pinned("mnist", contents)
    serve(server, spec, contents)
    calls = []
    paths = data.download(spec, base=server.base, progress=lambda *call: calls.append(call))
    assert [str(p.relative_to(cache / "data")) for p in paths] == [file.path for file in spec.files]
    assert server.asked[0] == "/mnist/train-images-idx3-ubyte.gz"
    first = contents[spec.files[0].path]
    assert (spec.files[0].path, len(first), len(first)) in calls
    images = data.get(spec)
    assert images.x_train.shape == (7, 1, 28, 28)
    assert images.y_test.tolist() == [0, 1, 2]
    assert images.x_train.dtype == torch.uint8
    asked = len(server.asked)
    assert data.download(spec, base=server.base) == paths  # here already: nobody is asked again
    assert len(server.asked) == asked


def test_download_of_cifar10(server):
    contents = fake_cifar()
    spec = pinned("cifar10", contents)
    serve(server, spec, contents)
    data.download(spec, base=server.base + "/")
    assert server.asked == ["/~kriz/cifar-10-binary.tar.gz"]
    for _ in range(2):  # unpacked, then from the cache
        images = data.get(spec)
        assert images.x_train.shape == (10, 3, 32, 32)
        assert images.y_train.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
        assert images.y_test.tolist() == [5, 4]
        assert images.x_test[0, :, 0, 0].tolist() == [5, 105, 5]


@pytest.mark.parametrize("contents", [fake_cifar(names=["data_batch_1"]), fake_cifar(cut=1)], ids=["missing", "cut"])
def test_archive_without_the_records_is_refused(cache, contents):
    spec = pinned("cifar10", contents)
    put(cache / "data", contents)
    with pytest.raises(DataUnavailable, match="of whole 3073-byte records"):
        data.get(spec)


@pytest.mark.parametrize("raw", [b"", b"\0\0\x08\x01\0\0\0\x05ab", b"\0\0\x0d\x01\0\0\0\x01abcd", b"\0\0\x08\x03\0"])
def test_idx_of_another_format_is_refused(cache, raw):
    contents = {path: gzip.compress(raw) for path in fake_mnist()}
    put(cache / "data", contents)
    with pytest.raises(DataUnavailable, match="not an IDX file"):
        data.get(pinned("mnist", contents))


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_download_of_libsvm_text_is_kept_compressed(server, cache, compressed):
    text = b"".join(b"%d.5 1:%d 27:-1\n" % (row, row) for row in range(74))
    spec = pinned("libsvm:pyrim_scale", {"libsvm/regression/pyrim_scale.bz2": text})
    serve(server, spec, {"libsvm/regression/pyrim_scale.bz2": gzip.compress(text) if compressed else text})
    (path,) = data.download(spec, base=server.base)
    assert server.asked == ["/~cjlin/libsvmtools/datasets/regression/pyrim_scale"]
    assert path.read_bytes().startswith(b"BZh")
    table = data.get(spec)
    assert table.x.shape == (74, 27)
    assert table.y[:3].tolist() == [0.5, 1.5, 2.5]
    assert table.dense().x[3, [0, 26]].tolist() == [3.0, -1.0]


def test_download_of_tinyshakespeare(server):
    text = b"First Citizen:\n" * 20
    spec = pinned("tinyshakespeare", {"lm_text/tinyshakespeare.txt.gz": text})
    serve(server, spec, {"lm_text/tinyshakespeare.txt.gz": text})
    data.download(spec, base=server.base)
    parts = data.get(spec)
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (270, 15, 15)
    assert parts.decode(parts.train[:15]) == "First Citizen:\n"


def corrupt(body):
    return (200, body[:-1] + b"?", len(body))


def truncated(body):
    return (200, body[:-5], len(body))


def not_found(body):
    return (404, b"gone", 4)


def failing(body):
    return (503, b"", 0)


def another_page(body):
    return (200, b"<html>please log in</html>", 26)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (corrupt, "gave another file: its sha256 is"),
        (truncated, "broke off after"),
        (not_found, "answered 404"),
        (failing, "answered 503"),
        (another_page, "gave another file"),
    ],
)
@pytest.mark.parametrize("name", ["cifar10", "libsvm:heart_scale"])
def test_failed_downloads_are_sentences_and_leave_nothing(server, cache, name, fault, sentence):
    spec = data.find(name)
    path = spec.files[0].path
    contents = fake_cifar() if name == "cifar10" else {path: b"+1 1:0.5\n" * 50}
    spec = pinned(name, contents)
    serve(server, spec, contents)
    server.pages.update({address: fault(contents[path]) for address in server.pages})
    with pytest.raises(DataUnavailable) as caught:
        data.download(spec, base=server.base)
    assert sentence in str(caught.value)
    assert path in str(caught.value)
    assert "Nothing was kept" in str(caught.value)
    assert kept(cache) == []


def test_a_corrupt_download_keeps_the_files_that_were_good(server, cache):
    contents = fake_mnist()
    spec = pinned("mnist", contents)
    serve(server, spec, contents)
    server.pages["/mnist/t10k-images-idx3-ubyte.gz"] = (200, b"x", 1)
    with pytest.raises(DataUnavailable, match="t10k-images"):
        data.download(spec, base=server.base)
    assert [name for name in kept(cache) if name != "verified.json"] == [
        "data/MNIST/raw/train-images-idx3-ubyte.gz",
        "data/MNIST/raw/train-labels-idx1-ubyte.gz",
    ]
    serve(server, spec, contents)
    server.asked.clear()
    assert len(data.download(spec, base=server.base)) == 4
    assert len(server.asked) == 2  # only what was missing


def test_a_broken_copy_in_the_cache_is_replaced(server, cache):
    contents = fake_cifar()
    spec = pinned("cifar10", contents)
    serve(server, spec, contents)
    put(cache / "data", {spec.files[0].path: b"half"})
    (path,) = data.download(spec, base=server.base)
    assert path.read_bytes() == contents[spec.files[0].path]


def test_the_next_home_is_tried(server, cache):
    body = b"text"
    spec = pinned("tinyshakespeare", {"lm_text/tinyshakespeare.txt.gz": body})
    homes = (f"{server.base}/gone", "ftp://127.0.0.1/x", f"{server.base}/there")
    spec = replace(spec, files=(replace(spec.files[0], urls=homes),))
    with pytest.raises(DataUnavailable, match=r"gone answered 404.*is not an http address.*there answered 404"):
        data.download(spec)
    server.pages["/there"] = (200, body, 4)
    assert data.download(spec)[0].is_file()


def test_no_server_and_no_writable_cache(server, cache, monkeypatch):
    contents = fake_cifar()
    spec = pinned("cifar10", contents)
    serve(server, spec, contents)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(DataUnavailable, match="could not be reached"):
            data.download(spec, base=f"http://127.0.0.1:{unused.getsockname()[1]}")
    server.asked.clear()
    (cache / "file").touch()
    monkeypatch.setenv("DLOPT_CACHE", str(cache / "file" / "below"))
    with pytest.raises(DataUnavailable, match=r"cannot be written .* set DLOPT_CACHE to a folder that can be written"):
        data.download(spec, base=server.base)
    assert server.asked == []


def test_a_server_that_never_stops_is_cut_off(server, cache, monkeypatch):
    # the module, not the function of that name, which the package shows instead
    monkeypatch.setattr(sys.modules["dlopt.tasks.data.download"], "LIMIT", 1000)
    contents = fake_cifar()
    spec = pinned("cifar10", contents)
    server.pages["/~kriz/cifar-10-binary.tar.gz"] = (200, b"x" * 200_000, 200_000)
    with pytest.raises(DataUnavailable, match="sent more than 1,000 bytes"):
        data.download(spec, base=server.base)
    assert kept(cache) == []


@pytest.mark.parametrize("name", ["digits", "stdlib-text", "cifar10-jpeg", "gutenberg-books"])
def test_sets_without_a_home_say_so(name):
    with pytest.raises(DataUnavailable, match=f"{name!r} has no public download"):
        data.download(name)


# ---- embedded sets, text, tables


def test_digits():
    images = data.get("digits")
    assert images.x_train.shape == (1442, 1, 8, 8)
    assert images.x_test.shape == (355, 1, 8, 8)
    assert images.x_train.max() == 16
    assert images.y_train[:10].tolist() == list(range(10))
    assert images.y_test.bincount().min() >= 34
    assert moments(images) == (images.mean, images.std)


def test_diabetes_and_breast_cancer():
    diabetes, cancer = data.get("diabetes"), data.get("breast-cancer")
    assert diabetes.x.shape == (442, 10)
    assert diabetes.y[:3].tolist() == [151.0, 75.0, 141.0]
    assert diabetes.classes == ()
    assert cancer.x.shape == (569, 30)
    assert np.bincount(cancer.y).tolist() == [212, 357]
    assert cancer.classes == ("malignant", "benign")


def test_a_changed_embedded_set_is_refused(monkeypatch):
    import sklearn.datasets

    changed = sklearn.datasets.load_digits()
    changed.data[0, 0] += 1
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: changed)
    with pytest.raises(DataUnavailable, match="installed scikit-learn is not the pinned one"):
        data.get("digits")


def test_standard_library_text():
    text = data.get("stdlib-text")
    assert len(text.train) > 5 * len(text.test) > 100_000
    assert len(text.valid) > 100_000
    assert "import" in text.decode(text.train[:20_000])
    assert data.identity("stdlib-text") == data.identity("stdlib-text")


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_plain_text_by_path(tmp_path, suffix):
    path = tmp_path / f"poem{suffix}"
    raw = "床前明月光".encode() * 20
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    text = data.get(f"text:{path}")
    assert bytes(torch.cat((text.train, text.valid, text.test)).tolist()) == raw
    assert data.identity(f"text:{path}") == {path.name: sha(path.read_bytes())}
    with pytest.raises(DataUnavailable, match="there is no file"):
        data.get(f"text:{tmp_path / 'absent'}")


def test_table_split_standardise_and_dense():
    random = np.random.default_rng(0)
    y, classes = classified(np.array([1.0, -1.0] * 10 + [-1.0] * 30))
    assert classes == ("-1", "1")
    table = Table(random.normal(3, 2, size=(50, 4)), y, classes)
    table.x[:, 3] = 7.0
    train, test = table.split(0.2, seed=1)
    assert (len(train.y), len(test.y), test.y.sum()) == (40, 10, 2)
    assert {tuple(row) for row in (*train.x, *test.x)} == {tuple(row) for row in table.x}
    assert np.array_equal(table.split(0.2, seed=1)[1].x, test.x)
    assert not np.array_equal(table.split(0.2, seed=2)[1].x, test.x)
    scaled = train.standardised()
    np.testing.assert_allclose(scaled.x.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.x.std(0), [1, 1, 1, 0], atol=1e-12)
    expected = (test.x[:, :3] - train.x[:, :3].mean(0)) / train.x[:, :3].std(0)
    np.testing.assert_allclose(test.standardised(train).x[:, :3], expected, atol=1e-12)
    for share in (0, 1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            table.split(share)
    regression = Table(table.x, random.normal(size=50)).split(0.1)
    assert len(regression[1].y) == 5


# ---- the real data


@real
def test_real_mnist(here):
    images = data.get("mnist")
    assert images.x_train.shape == (60_000, 1, 28, 28)
    assert images.x_test.shape == (10_000, 1, 28, 28)
    assert images.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert images.y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert images.y_train.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert moments(images) == (images.mean, images.std)


@real
@pytest.mark.slow
def test_real_cifar10_jpeg(here, cache):
    images = data.get("cifar10-jpeg")
    assert images.x_train.shape == (50_000, 3, 32, 32)
    assert images.x_test.shape == (10_000, 3, 32, 32)
    assert images.y_train.bincount().tolist() == [5000] * 10
    assert images.y_test.bincount().tolist() == [1000] * 10
    assert images.y_train[:12].tolist() == [*range(10), 0, 1]  # rows go round the classes
    assert moments(images) == (images.mean, images.std)
    assert len([name for name in kept(cache) if name.startswith("decoded/")]) == 2
    again = data.get("cifar10-jpeg")
    assert torch.equal(again.x_test, images.x_test)


@real
@pytest.mark.parametrize("name", [n for n in data.names() if n.startswith("libsvm:")])
def test_real_libsvm(here, name):
    table = data.get(name)
    assert table.x.dtype == np.float64
    assert table.x.shape[0] == len(table.y)
    if name == "libsvm:abalone_scale":
        assert table.x.shape == (4177, 8)
        assert table.y[:3].tolist() == [15, 7, 9]
    if name == "libsvm:a9a":
        assert table.classes == ("-1", "1")
        assert np.bincount(table.y).tolist() == [24_720, 7_841]
    if name == "libsvm:breast-cancer":
        assert table.classes == ("2", "4")
        assert np.bincount(table.y).tolist() == [444, 239]
    if name == "libsvm:news20":
        assert table.x.shape == (15_935, 62_061)
        with pytest.raises(ValueError, match="use it sparse"):
            table.dense()
    if name == "libsvm:heart_scale":
        assert -1 <= table.dense().x.min() < table.dense().x.max() <= 1
        assert [part.x.shape[0] for part in table.split(0.1)] == [243, 27]


@real
def test_real_texts(here):
    books, plays = data.get("gutenberg-books"), data.get("tinyshakespeare")
    assert plays.decode(plays.train[:14]) == "First Citizen:"
    assert len(plays.train) + len(plays.valid) + len(plays.test) == 1_115_394
    assert len(books.train) > 17_000_000
    assert "Call me Ishmael" in books.decode(books.test[:100_000])
