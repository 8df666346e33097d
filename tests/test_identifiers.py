"""What data may say of persons: stated by the user, held against what the machine accepts, counted in DICOM headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher

from hpcai import limits
from hpcai.cluster import read_machine
from hpcai.config.check import check, load
from hpcai.config.schema import Config
from hpcai.errors import ConfigError, HpcaiError, PlanError
from hpcai.plan import digest, machine_faults

ALL = ["none", "pseudonymised", "identifying"]
MELUXINA = ["+experiment=pneumonia", "cluster=meluxina", "cluster.account=p200000", "data.path=/project/home/p200000/x.npz"]


def on(accepted: list[str] | None, stated: str | None, job: str = "train", executor: str = "local") -> Config:
    """A config of a cluster whose file says so."""
    facts = {"partitions": {"cpu": {"cores": 4}}, "cpu_partition": "cpu"} | (
        {} if accepted is None else {"identifiers": accepted}
    )
    return check({
        "name": "x", "job": job, "data": {"path": "x", "labels": ["a", "b"], "identifiers": stated},
        "from_run": None if job == "train" else "r",
        "cluster": {"name": "newton", "executor": executor, "python": "/x", "facts": facts},
    })  # fmt: skip


# --- stated


@pytest.mark.parametrize("job", ["train", "evaluate", "predict"])
def test_a_job_that_reads_images_wants_it_stated_and_says_what_each_word_means(job: str) -> None:
    with pytest.raises(HpcaiError) as caught:
        on(ALL, None, job)
    assert caught.value.code == ConfigError.code
    (line,) = caught.value.lines
    assert line.startswith("data.identifiers=null: must be stated. Write none (")
    assert "pseudonymised (" in line and "identifying (" in line


def test_gather_reads_no_image_and_needs_no_word() -> None:
    assert on(["none"], None, "gather").data.identifiers is None
    assert list(machine_faults(on(["none"], "identifying", "gather"), read_machine())) == []


def test_it_is_told_beside_other_faults_and_not_where_the_group_is_wrong_as_a_whole() -> None:
    def lines(*words: str) -> list[str]:
        with pytest.raises(HpcaiError) as caught:
            load(["name=x", "data.path=x", *words])
        return [line.split(":")[0] for line in caught.value.lines]

    assert sorted(lines("data.labels=[a,b]", "trainer.lr=0")) == ["data.identifiers=null", "trainer.lr=0"]
    assert lines("data.labels=[a,a]", "data.identifiers=none") == ["data.labels"]
    assert lines("data.labels=[a,b]", "data.identifiers=anonymous") == ["data.identifiers=anonymous"]


def test_it_makes_no_other_run() -> None:
    assert digest(on(ALL, "none")) == digest(on(ALL, "identifying"))


def test_a_launcher_refuses_with_2_and_writes_nothing(launch: Launcher) -> None:
    done = launch("data.identifiers=null")
    assert done.rc == 2 and done.errors[0].startswith("data.identifiers=null: must be stated.")
    assert not launch.runs.exists()


@pytest.mark.parametrize("name", ["pneumonia", "pneumonia_resnet18", "smoke"])
def test_what_is_shipped_states_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcai.config.registry import EXTRAS

    monkeypatch.setitem(EXTRAS, "imaging", "json")
    data = load([f"+experiment={name}"]).data
    assert (data.identifiers, data.shareable) == ("none", True)


# --- accepted


@pytest.mark.parametrize("executor", ["local", "slurm"])
@pytest.mark.parametrize(("accepted", "stated", "refused"), [
    (["none"], "none", False), (["none"], "pseudonymised", True), (["none", "pseudonymised"], "pseudonymised", False),
    (["none", "pseudonymised"], "identifying", True), ([], "none", True), (ALL, "identifying", False),
    (None, "identifying", False),
])  # fmt: skip
def test_what_a_cluster_file_does_not_accept_is_refused_with_3(
    executor: str, accepted: list[str] | None, stated: str, refused: bool
) -> None:
    faults = [
        str(f) for f in machine_faults(on(accepted, stated, executor=executor), read_machine()) if isinstance(f, PlanError)
    ]
    told = [f for f in faults if f.startswith(f"data.identifiers={stated}: cluster newton accepts ")]
    assert len(told) == refused
    if told and accepted:
        assert ", ".join(accepted) in told[0]


def test_nothing_is_sent_where_it_is_not_accepted(launch: Launcher) -> None:
    folder = launch.home / "site"
    folder.mkdir()
    (folder / "local.yaml").write_text(
        "name: local\nfacts: {identifiers: [none], sources: {identifiers: a}, cited: {a: rules}}\n"
    )
    done = launch("data.identifiers=identifying", HPCAI_SITE=str(folder))
    assert done.rc == 3 and "data.identifiers=identifying: cluster local accepts none, says its file." in done.err
    assert not launch.runs.exists()
    assert launch("data.identifiers=none", HPCAI_SITE=str(folder)).rc == 0


@pytest.mark.parametrize(("stated", "warned"), [("none", False), ("pseudonymised", True), ("identifying", True)])
def test_a_plan_warns_where_nobody_knows_what_the_site_accepts(stated: str, warned: bool) -> None:
    config = load([*MELUXINA, f"data.identifiers={stated}"])
    given = limits.allocation(config)
    assert given is not None
    said = " ".join(limits.warnings(config, given))
    assert (f"whether it accepts {stated} data" in said) == warned


def test_this_machine_takes_all_since_the_data_lie_here_already() -> None:
    assert load(["+experiment=smoke"]).cluster.facts.identifiers == ALL


# --- counted in headers


def header(**values: Any) -> Any:
    from pydicom.dataset import Dataset

    found = Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


@pytest.mark.imaging
@pytest.mark.parametrize(("values", "kinds"), [
    ({"BurnedInAnnotation": "NO"}, set()),
    ({}, {"burned in: not said"}),
    ({"BurnedInAnnotation": "YES"}, {"burned in"}),
    ({"BurnedInAnnotation": "NO", "PatientName": "Mustermann^Erika"}, {"names"}),
    ({"BurnedInAnnotation": "NO", "PatientName": "", "PatientBirthDate": ""}, set()),
    ({"BurnedInAnnotation": "NO", "PatientBirthDate": "19500101", "PatientID": "1"}, {"birth dates", "patient ids"}),
    ({"BurnedInAnnotation": "NO", "InstitutionAddress": "x", "OperatorsName": "y"}, {"addresses", "names"}),
    ({"BurnedInAnnotation": "NO", "StudyDate": "20200101", "PatientIdentityRemoved": "YES"},
     {"dates of study", "said to be de-identified"}),
])  # fmt: skip
def test_kinds_of_identifiers_are_told_by_attributes_that_have_a_value(values: dict[str, Any], kinds: set[str]) -> None:
    from hpcai.intake.identifiers import kinds_of

    assert kinds_of(header(**values)) == kinds


@pytest.mark.imaging
def test_private_tags_and_sequences_are_looked_into() -> None:
    from pydicom.sequence import Sequence

    from hpcai.intake.identifiers import kinds_of

    plain = header(BurnedInAnnotation="NO")
    plain.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "x")
    assert kinds_of(plain) == {"private tags"}
    nested = header(BurnedInAnnotation="NO")
    nested.ReferencedStudySequence = Sequence([header(PatientName="Mustermann^Erika")])
    assert kinds_of(nested) == {"names"}


@pytest.mark.imaging
def test_every_keyword_looked_for_is_one_of_the_standard() -> None:
    from pydicom.datadict import tag_for_keyword

    from hpcai.intake.identifiers import KINDS

    assert [k for keywords in KINDS.values() for k in keywords if tag_for_keyword(k) is None] == []


@pytest.mark.imaging
@pytest.mark.parametrize(("header", "proposed"), [
    ({"PatientName": "", "PatientID": "code 7"}, "pseudonymised"), ({"PatientName": "", "PatientID": ""}, "none"),
    ({"PatientName": "A^B", "PatientID": "code 7"}, "identifying"),
])  # fmt: skip
def test_new_proposes_what_the_headers_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, header: dict[str, str], proposed: str
) -> None:
    from test_decode import dicom_bytes

    from hpcai import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "img").mkdir()
    lines = ["image,class"]
    for i in range(12):
        (tmp_path / f"img/{i}.dcm").write_bytes(dicom_bytes(seed=i, **header))
        lines.append(f"{i},{'ab'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert cli.main(["new", "ct", "--images", "img", "--labels", "labels.csv"]) == 0
    assert f"data.identifiers={proposed}\n" in capsys.readouterr().out


@pytest.mark.imaging
def test_new_counts_headers_and_shows_no_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_decode import dicom_bytes

    from hpcai import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "img").mkdir()
    lines = ["image,class"]
    for i in range(12):
        data = dicom_bytes(seed=i, PatientName="Mustermann^Erika", PatientBirthDate="19500101" if i % 2 else "")
        (tmp_path / f"img/1.2.840.{i}").write_bytes(data)  # no suffix but a UID's digits
        lines.append(f"1.2.840.{i},{'ab'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert cli.main(["new", "ct", "--images", "img", "--labels", "labels.csv"]) == 0
    out = capsys.readouterr().out
    assert "of 12 DICOM headers" in out and "names 12" in out and "birth dates 6" in out
    assert "data.identifiers=identifying" in out
    page = Path("mine/ct-fingerprint.html").read_text("utf-8")
    assert "birth dates" in page and "Mustermann" not in out + page and "19500101" not in out + page
