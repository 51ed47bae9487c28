"""A run whose folder is 'gs://...', on a file system in memory behind epath."""

import json
import pathlib
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from fewshotseg import cli, errors
from fewshotseg.runs import checkpoint, folder, remote
from fewshotseg.runs import log as summaries

ADDRESS = "gs://bucket/runs/toy"


class Bucket(MemoryFileSystem):
    """Objects in memory under gs://; names in `broken` cannot be written."""

    protocol = "gs"
    store, pseudo_dirs, broken, written = {}, [""], set(), []

    @classmethod
    def _strip_protocol(cls, path):
        path = path.removeprefix("gs://").strip("/")
        return f"/{path}" if path else ""

    def _open(self, path, mode="rb", **options):
        if "w" in mode:
            if path.rpartition("/")[2] in self.broken:
                raise OSError("no network")
            self.written.append(path.removeprefix("/bucket/runs/toy/"))
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket():
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    for kept in (Bucket.store, Bucket.broken, Bucket.written):
        kept.clear()
    return Bucket


def mirror(path):
    return remote.Mirror(ADDRESS, path)


def contents(path):
    return {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()}


def pulled(path):
    """What another machine finds."""
    made = mirror(path)
    made.pull()
    return contents(made.here)


def write(path, **texts):
    for name, text in texts.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_what_is_made_here_is_found_elsewhere(bucket, tmp_path):
    ours = mirror(tmp_path / "a")
    assert ours.pull() == 0 and ours.push()
    assert not bucket.store  # nothing here, nothing there
    write(ours.here, config="{}", joint__checkpoints__20__state="x" * 9, joint__log="1\n")
    assert ours.push()
    assert pulled(tmp_path / "b") == contents(ours.here)


def test_only_what_has_changed_is_copied_and_what_is_gone_goes(bucket, tmp_path):
    ours = mirror(tmp_path / "a")
    write(ours.here, old="1", log="1\n", config="{}")
    ours.push()
    bucket.written.clear()
    assert ours.push() and not bucket.written
    (ours.here / "old").unlink()
    write(ours.here, log="1\n2\n", new="3")
    ours.push()
    assert sorted(bucket.written) == [remote.CONTENTS, "log", "new"]
    assert pulled(tmp_path / "b") == {"log": "1\n2\n", "new": "3", "config": "{}"}
    assert "/bucket/runs/toy/old" not in bucket.store


def test_a_copy_that_went_on_elsewhere_copies_its_own_changes_alone(bucket, tmp_path):
    ours = mirror(tmp_path / "a")
    write(ours.here, config="{}", log="1\n")
    ours.push()
    theirs = mirror(tmp_path / "b")
    theirs.pull()
    bucket.written.clear()
    assert theirs.push() and not bucket.written  # a process that writes nothing
    write(theirs.here, log="1\n2\n")
    theirs.push()
    assert bucket.written == ["log"]


def test_what_another_machine_lists_meanwhile_stays(bucket, tmp_path):
    """A report of a run that goes on training."""
    training = mirror(tmp_path / "a")
    write(training.here, c__20__state="old", log="1\n")
    training.push()
    report = mirror(tmp_path / "b")
    report.pull()
    write(training.here, c__40__state="new", summary="done", log="1\n2\n")
    (training.here / "c" / "20" / "state").unlink()
    training.push()
    write(report.here, report="page")
    bucket.written.clear()
    report.push()
    assert sorted(bucket.written) == [remote.CONTENTS, "report"]
    (training.here / "summary").unlink()
    training.push()
    expected = {"c/40/state": "new", "log": "1\n2\n", "report": "page"}
    assert pulled(tmp_path / "c") == expected


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "c/../../evil", "."])
def test_a_list_that_names_files_outside_is_refused(name, bucket, tmp_path):
    fsspec.filesystem("gcs").pipe(f"{ADDRESS}/{remote.CONTENTS}", json.dumps([name]).encode())
    with pytest.raises(errors.InputError, match="outside of the run"):
        mirror(tmp_path / "a" / "b").pull()


def test_files_half_written_and_the_lock_stay_here(bucket, tmp_path):
    ours = mirror(tmp_path / "a")
    write(ours.here, config="{}")
    for name in (".lock", ".partial-12ab-config", "joint/20.orbax-checkpoint-tmp-7/state"):
        write(ours.here, **{name.replace("/", "__"): "half"})
    ours.push()
    assert pulled(tmp_path / "b") == {"config": "{}"}


def test_a_copy_that_breaks_off_leaves_the_run_as_it_was(bucket, tmp_path):
    ours = mirror(tmp_path / "a")
    write(ours.here, c__20__state="old", c__20__model="old")
    ours.push()
    write(ours.here, c__40__state="new", c__40__model="new")
    for name in ("c/20/state", "c/20/model"):
        (ours.here / name).unlink()
    bucket.broken.add("model")
    with pytest.raises(errors.InputError, match="cannot be written .*no network"):
        ours.push()
    assert pulled(tmp_path / "b") == {"c/20/state": "old", "c/20/model": "old"}
    bucket.broken.clear()
    assert ours.push()
    assert pulled(tmp_path / "c") == {"c/40/state": "new", "c/40/model": "new"}


def test_a_checkpoint_that_comes_meanwhile_is_copied_whole_or_not_at_all(
    bucket, tmp_path, monkeypatch
):
    ours = mirror(tmp_path / "a")
    write(ours.here, c__20__state="old")
    ours.push()
    send, sent = remote.Mirror._send, []

    def and_more(self, name, state):
        sent.append(name)
        write(self.here, **{f"c__{40 + len(sent)}__state": "new"})
        return send(self, name, state)

    monkeypatch.setattr(remote.Mirror, "_send", and_more)
    assert not ours.push()  # files come all the while
    assert pulled(tmp_path / "b") == {"c/20/state": "old"}


def test_a_run_brought_there_by_other_means(bucket, tmp_path):
    for name in ("config.json", "joint/log.jsonl"):
        bucket.store.clear()
        fsspec.filesystem("gcs").pipe(f"{ADDRESS}/{name}", b"{}")
        assert pulled(tmp_path / name) == {name: "{}"}


def test_copied_back_while_it_grows_and_in_the_end(bucket, tmp_path):
    with remote.copies([ADDRESS, str(tmp_path)], every=0.01, log=lambda text: None) as here:
        made = tmp_path / here[0]
        assert made.name == "toy" and here[1] == str(tmp_path)
        write(made, log="1\n")
        wait_for(lambda: "/bucket/runs/toy/log" in bucket.store)
        write(made, log="1\n2\n")
    assert not made.exists()
    assert pulled(tmp_path / "b") == {"log": "1\n2\n"}


def test_what_is_wrong_with_a_run_is_said_with_its_address(bucket, tmp_path):
    with pytest.raises(errors.InputError, match=f"^{ADDRESS}/splits.json is missing"):
        with remote.copies([ADDRESS], log=lambda text: None) as here:
            raise errors.InputError(f"{here[0]}/splits.json is missing.")


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_cannot_be_copied_back_is_kept(bucket, tmp_path):
    said = []
    with pytest.raises(errors.InputError, match="The copy in .* is kept"):
        with remote.copies([ADDRESS], every=0.01, log=said.append) as here:
            bucket.broken.add("log")
            write(made := tmp_path / here[0], log="1\n")
            wait_for(lambda: any("Trying again" in text for text in said))
    assert (made / "log").read_text() == "1\n"
    bucket.broken.clear()


def test_every_copy_is_copied_back_and_those_that_cannot_be_are_named(bucket, tmp_path):
    addresses = [ADDRESS, f"{ADDRESS}2", f"{ADDRESS}3"]
    with pytest.raises(errors.InputError) as raised:
        with remote.copies(addresses, every=100, log=lambda text: None) as here:
            bucket.broken.add("log")
            for folder, name in zip(here, ("log", "config", "log"), strict=True):
                write(tmp_path / folder, **{name: "1"})
    assert all(f"The copy in {here[i]} is kept" in str(raised.value) for i in (0, 2))
    assert bucket.store["/bucket/runs/toy2/config"].getvalue() == b"1"


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--workdir=ftp://host/run"], "give a local folder, or one of gs://, s3://, az://"),
        (["--workdir=s3://bucket/run"], "pip install s3fs"),
        (["--mode=predict", "--input=gs://bucket/a.png"], "--input is a folder or file of this"),
    ],
)
def test_addresses_that_cannot_be(flags, sentence, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["run.py", *flags])
    assert left.value.code == 2 and sentence in capsys.readouterr().err


def test_a_run_is_trained_there_and_goes_on_from_there(bucket, tmp_path, capsys):
    """Trained, evaluated and reported in the bucket; longer from another machine; it predicts."""
    toy = pathlib.Path(__file__).parents[1] / "toy_config.py"
    command = ["run.py", f"--config={toy}:method=real_plain", "--config.eval_every=5"]
    flags = [f"--workdir={ADDRESS}", "--config.train.num_steps=5"]
    cli.main([*command, *flags])
    names = json.loads(bucket.store[f"/bucket/runs/toy/{remote.CONTENTS}"].getvalue())
    for name in ("config.json", "report.html", "real_plain/log.jsonl", "contact_sheet.png"):
        assert name in names
    cli.main([*command, flags[0], "--config.train.num_steps=10"])
    out = capsys.readouterr().out
    assert "grows from 5 to 10" in out and f"Report: {ADDRESS}/report.html" in out
    assert f"results in {ADDRESS}\n" in out
    cli.main([*command, f"--workdir={tmp_path / 'local'}", "--config.train.num_steps=10"])
    mirror(tmp_path / "there").pull()
    assert folder.read_config(tmp_path / "there")["train"]["num_steps"] == 10
    logs = [
        summaries.read_log(tmp_path / w / "real_plain" / "log.jsonl") for w in ("there", "local")
    ]
    losses = [[line["segmenter/loss"] for line in lines] for lines in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 2  # bit for bit
    assert checkpoint.has_checkpoint(tmp_path / "there" / "real_plain" / "checkpoints")
    contact = tmp_path / "there" / "contact_sheet.png"
    predict = ["--mode=predict", f"--input={contact}", f"--output={tmp_path / 'out'}"]
    cli.main(["run.py", f"--workdir={ADDRESS}", *predict])
    assert (tmp_path / "out" / "masks" / contact.name).exists()
