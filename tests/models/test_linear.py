"""The linear model against numpy, and its file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.errors import ConfigError, ModelError, ShapeError
from streambatch.core.parts import Site
from streambatch.models.linear import LinearModel, LinearOptions

SHAPES = st.sampled_from([(1,), (10,), (2, 3), (4, 4, 3)])


@given(SHAPES, st.integers(0, 600), st.sampled_from([None, 1, 3]), st.sampled_from(["f4", "f8"]), st.integers(0, 999))
def test_scores_are_weighted_sums(shape: tuple[int, ...], n: int, k: int | None, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = int(np.prod(shape))
    weights = rng.normal(size=d if k is None else (d, k))
    bias = rng.normal(size=() if k is None else k)
    x = rng.normal(size=(n, *shape)).astype(dtype)
    scores = LinearModel(weights, bias).score(x)
    tolerance = 1e-4 if dtype == "f4" else 1e-12
    np.testing.assert_allclose(scores, x.reshape(n, d) @ weights + bias, rtol=tolerance, atol=tolerance)
    assert scores.dtype == x.dtype
    assert scores.shape == ((n,) if k is None else (n, k))


@pytest.mark.parametrize(
    ("weights", "bias", "error", "message"),
    [
        (np.ones((2, 2, 2)), 0, ShapeError, "weights of model linear: expected shape (d,) or (d, k), found (2, 2, 2)"),
        (1.0, 0, ShapeError, "weights of model linear: expected shape (d,) or (d, k), found ()"),
        ([], 0, ShapeError, "weights of model linear: expected shape (d,) or (d, k), found (0,)"),
        (np.ones((3, 2)), np.ones(3), ShapeError, "bias of model linear: expected shape () or (2,), found (3,)"),
        (np.ones(3), np.ones(3), ShapeError, "bias of model linear: expected shape (), found (3,)"),
        ([1, np.nan], 0, ModelError, "model linear: weights[1] is nan; expected a finite number"),
        ([1], np.inf, ModelError, "model linear: bias is inf; expected a finite number"),
        (["a"], 0, ModelError, "model linear: weights: expected numbers, found an array of <U1"),
    ],
)
def test_arrays_that_are_no_model_are_refused(
    weights: object, bias: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        LinearModel(weights, bias)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_weights_that_do_not_fit_the_records_are_refused() -> None:
    model = LinearModel(np.ones(9))
    model.bind((9,))
    model.bind((3, 3))
    wanted = r"model linear: expected shape \(10,\) or \(10, k\) of weights, for records of shape \(10,\), found \(9,\)"
    with pytest.raises(ShapeError, match=wanted):
        model.bind((10,))
    with pytest.raises(ShapeError, match=wanted):
        model.score(np.zeros((512, 10)))


def test_a_bias_of_one_number_goes_with_any_weights() -> None:
    assert LinearModel([1.0, 1.0], [3.0]).score(np.zeros((2, 2))).tolist() == [3.0, 3.0]
    assert LinearModel(np.ones((2, 2)), [3.0]).score(np.zeros((1, 2))).tolist() == [[3.0, 3.0]]


def test_it_is_loaded_from_its_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", weights=np.arange(3), bias=2)
    digest = hashlib.sha256((tmp_path / "model.npz").read_bytes()).hexdigest()
    model = LinearOptions(path="model.npz", sha256=digest.upper()).build(Site(folder=tmp_path))
    assert model.score(np.ones((1, 3))).tolist() == [5.0]
    assert (model.digest, model.format, model.name) == (digest, "linear", "linear")


def test_a_model_without_a_file_has_the_digest_of_its_arrays() -> None:
    assert LinearModel([1, 2]).digest == LinearModel([1.0, 2.0], 0).digest
    assert LinearModel([1, 2]).digest != LinearModel([1, 3]).digest
    assert len(LinearModel([1, 2]).digest) == 64


def test_a_file_that_is_not_the_one_pinned_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.npz").write_bytes(b"not even an archive")
    found = hashlib.sha256(b"not even an archive").hexdigest()
    with pytest.raises(ModelError) as caught:
        LinearOptions(path="model.npz", sha256="0" * 64).build(Site(folder=tmp_path))
    assert str(caught.value) == f"model linear: {tmp_path}/model.npz: expected sha256 {'0' * 64}, found {found}"
    with pytest.raises(ConfigError, match="sha256: found 'abc'; allowed: a sha256 of 64 hexadecimal digits"):
        LinearOptions(path="model.npz", sha256="abc")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"bias": 1}, "no array `weights`; it holds `bias`"),
        ({}, "no array `weights`, `bias`; it holds none"),
        ({"weights": np.array([object()]), "bias": 0}, "array weights can't be read: Object arrays cannot be loaded"),
        ({"weights": np.array(["a"]), "bias": 0}, "model.npz: weights: expected numbers, found an array of <U1"),
    ],
)
def test_a_file_without_the_arrays_is_refused(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "model.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ModelError) as caught:
        LinearOptions(path="model.npz").build(Site(folder=tmp_path))
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive", b"\x80\x04pickle", b"\x93NUMPY"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.npz").write_bytes(content)
    with pytest.raises(ModelError, match=r"model.npz: expected an .npz file of arrays `weights`, `bias`"):
        LinearOptions(path="model.npz").build(Site(folder=tmp_path))


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "model.npy", np.ones(3))
    with pytest.raises(ModelError, match="found a single array"):
        LinearOptions(path="model.npy").build(Site(folder=tmp_path))


def test_a_cut_off_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", weights=np.ones(1000), bias=0)
    data = bytearray((tmp_path / "model.npz").read_bytes())
    data[2000:2100] = bytes(100)
    (tmp_path / "model.npz").write_bytes(data)
    with pytest.raises(ModelError, match="array weights can't be read"):
        LinearOptions(path="model.npz").build(Site(folder=tmp_path))


@pytest.mark.parametrize(
    ("weights", "bias", "message"),
    [
        ([1, 2, np.nan], 0, "model linear: {path}: weights[2] is nan; expected a finite number"),
        ([1, 2, 3], np.inf, "model linear: {path}: bias is inf; expected a finite number"),
        (1, 0, "weights of model linear: expected shape (d,) or (d, k), found (); loaded from {path}"),
        ([1, 2, 3], [1, 2], "bias of model linear: expected shape (), found (2,); loaded from {path}"),
        (
            [1, 2, 3, 4],
            0,
            "model linear: expected shape (3,) or (3, k) of weights, for records of shape (3,), found (4,); "
            "loaded from {path}",
        ),
    ],
)
def test_a_file_of_numbers_that_will_not_do_is_named(
    tmp_path: Path, weights: list[float], bias: object, message: str
) -> None:
    np.savez(tmp_path / "model.npz", weights=weights, bias=bias)  # type: ignore[arg-type]  # wrong ones too
    with pytest.raises((ModelError, ShapeError)) as caught:
        LinearOptions(path="model.npz").build(Site(folder=tmp_path)).bind((3,))
    assert str(caught.value) == message.format(path=tmp_path / "model.npz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model linear: .*/none.npz: No such file or directory"):
        LinearOptions(path="none.npz").build(Site(folder=tmp_path))
