"""`hansa mirror`: whatever a person changes in MLflow by hand is found, and a rebuild puts it right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commons.log import open_proof_file
from commons.notes import Verifier
from commons.records import Kind, Record
from governance.tracking import checking
from governance.tracking.cursor import CURSOR, Cursor, CursorFile
from governance.tracking.releases import shown as alias_in_mlflow
from hansa.cli import app
from tests.support.chamber import LOG
from tests.support.mirrored import shown, uri, values
from tests.support.story import RUN

mlflow_store = pytest.importorskip("governance.tracking.mlflow_store")
MODEL = "demo-glm4_moe"


def found(home: Path) -> list[tuple[str, str, str]]:
    return [(f.kind, f.where, f.what) for f in checking.verify(home, "", "").findings]


def client(home: Path) -> Any:
    return mlflow_store.MlflowClient(uri(home), uri(home))


def run_id(of: Any, tag: str, value: str) -> str:
    runs = of.search_runs([e.experiment_id for e in of.search_experiments()], f"tags.`{tag}` = '{value}'")
    return str(runs[0].info.run_id)


def test_a_mirror_that_nobody_touched_has_no_findings(published: Path) -> None:
    report = checking.verify(published, "", "")
    assert report.findings == ()
    assert report.compared == report.records
    assert (report.versions, report.runs) == (2, 1 + 3 + 4 + 6)


def test_the_released_model_is_the_one_that_was_voted_for_last(published: Path) -> None:
    version = client(published).get_model_version_by_alias(MODEL, "released")
    assert (version.tags["hansa.round"], version.tags["hansa.proposal"]) == ("2", "P-0004")
    assert version.run_id == run_id(client(published), "hansa.idem", f"run/{RUN}")
    files = shown(published)[f"run/{RUN}"]["files"]
    folder = version.source.partition(f"{version.run_id}/")[2]
    assert files[f"{folder}/release.note"].startswith("hansa-release/v1\n")


def test_every_proof_among_the_files_proves_its_record(published: Path) -> None:
    proven = []
    for run in shown(published).values():
        for path, text in run["files"].items():
            if path.endswith(".tlog-proof"):
                _, leaf = open_proof_file(text, Verifier.from_vkey(LOG.vkey))
                proven.append(Record.parse(leaf).kind)
                note = run["files"].get(path.replace(".tlog-proof", ".note"))
                assert note is None or Record.parse(leaf).body.decode() == note
    assert {Kind.PROPOSAL, Kind.BALLOT, Kind.OUTCOME, Kind.EXECUTION, Kind.RELEASE} == set(proven)


def test_a_partner_finds_its_month_and_its_statement(published: Path) -> None:
    runs = shown(published)
    november, december = (runs[f"ledger/acme/2023-{month}"] for month in ("11", "12"))
    assert (november["status"], december["status"]) == ("FINISHED", "RUNNING")
    assert set(november["files"]) == {"statement.note", "focus.csv", "journal.hledger"}
    assert november["files"]["statement.note"].startswith("hansa-statement/v1\n")
    assert values(november, "period/granted_micro")[-1][1] == 1_000_000
    assert values(november, "period/charged_micro")[-1][1] == 1_400
    held = [value for _, value in values(november, "budget/held_micro")]
    assert (held[0], max(held), held[-1]) == (0, 1_000, 0)
    assert values(november, "forecast/round_micro")[-1][1] == 700
    assert not december["files"]


def tag(home: Path) -> None:
    client(home).set_tag(run_id(client(home), "proposal.number", "P-0001"), "proposal.state", "defeated")


def note(home: Path) -> None:
    client(home).set_tag(run_id(client(home), "proposal.number", "P-0001"), "mlflow.note.content", "Mine.")


def metric(home: Path) -> None:
    client(home).log_metric(run_id(client(home), "hansa.role", "coordinator"), "train/loss", 0.01, step=1)


def file(home: Path) -> None:
    client(home).log_text(run_id(client(home), "proposal.number", "P-0002"), "{}", "tally.json")


def end(home: Path) -> None:
    client(home).set_terminated(run_id(client(home), "hansa.period", "2023-12"), "FAILED")


def deleted(home: Path) -> None:
    client(home).delete_run(run_id(client(home), "hansa.idem", f"run/{RUN}/partner/beta"))


def renamed(home: Path) -> None:
    client(home).update_run(run_id(client(home), "hansa.idem", f"run/{RUN}/partner/coop"), name="ours")


def doubled(home: Path) -> None:
    experiment = client(home).get_experiment_by_name("demo/training").experiment_id
    client(home).create_run(experiment, tags={"hansa.idem": f"run/{RUN}"})


def foreign(home: Path) -> None:
    client(home).create_run(client(home).get_experiment_by_name("demo/ledger").experiment_id, run_name="x")


def moved(home: Path) -> None:
    client(home).set_registered_model_alias(MODEL, "released", "1")


def another(home: Path) -> None:
    client(home).set_registered_model_alias(MODEL, "best", "1")


def gone(home: Path) -> None:
    """With the alias that names it."""
    client(home).delete_model_version(MODEL, "2")


BY_HAND = (
    (tag, "different", "proposal/", "tag proposal.state is 'defeated', by the journal 'executed'"),
    (note, "different", "proposal/", "tag mlflow.note.content is 'Mine.'"),
    (metric, "different", f"run/{RUN}", "points that the journal does not give: train/loss = 0.01 at step 1"),
    (file, "different", "proposal/", "file tally.json was changed"),
    (end, "different", "ledger/", "status is 'FAILED', by the journal 'RUNNING'"),
    (deleted, "missing", f"run/{RUN}/partner/beta", "somebody deleted it in MLflow"),
    (renamed, "different", f"run/{RUN}/partner/coop", "name is 'ours', by the journal 'coop'"),
    (doubled, "duplicate", f"run/{RUN}", "it stands 2 times"),
    (foreign, "foreign", "run 'x'", "a run of ledger that no record of the journal made"),
    (moved, "different", "alias released", "somebody moved it by hand"),
    (another, "foreign", "alias best", "no vote made it"),
)


def test_what_a_person_changed_in_mlflow_is_found(copied: Path) -> None:
    for by_hand, *_ in BY_HAND:
        by_hand(copied)
    findings = found(copied)
    for _, kind, where, what in BY_HAND:
        assert any((k, w.startswith(where), what in said) == (kind, True, True) for k, w, said in findings), (
            f"{kind} {where}: {what}"
        )


def test_a_rebuild_shows_the_same_again_whatever_was_changed(copied: Path, published: Path) -> None:
    for by_hand in (tag, metric, file, deleted, doubled, foreign, another, gone):
        by_hand(copied)
    runner = CliRunner()
    verified = runner.invoke(app, ["mirror", "verify", "--home", str(copied), "--json"])
    assert verified.exit_code == 5
    said = json.loads(verified.stdout)
    assert min(said[kind] for kind in ("missing", "duplicate", "different", "foreign")) > 0
    lost = {f["where"].partition("/")[0] for f in said["findings"] if f["kind"] == "missing"}
    assert lost == {"run", "release", "alias released"}
    rebuilt = runner.invoke(app, ["mirror", "rebuild", "--home", str(copied)])
    assert rebuilt.exit_code == 0, rebuilt.output
    verified = runner.invoke(app, ["mirror", "verify", "--home", str(copied)])
    assert (verified.exit_code, "shows what the journal says" in verified.stdout) == (0, True), (
        verified.stdout
    )
    assert shown(copied) == shown(published)


def test_a_batch_that_was_interrupted_is_neither_missing_nor_foreign(copied: Path) -> None:
    size = checking.verify(copied, "", "").records
    CursorFile(copied / CURSOR).write(Cursor(uri(copied), size - 9, size))
    assert found(copied) == []
    deleted(copied)
    assert [kind for kind, _, _ in found(copied)] == ["missing"]
    CursorFile(copied / CURSOR).write(Cursor(uri(copied), size - 9, size - 9))
    assert {"foreign", "different"} & {kind for kind, _, _ in found(copied)}


def test_a_mirror_that_never_ran_is_no_finding_but_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["mirror", "verify", "--home", str(tmp_path)])
    assert done.exit_code == 1
    assert "has written nothing yet" in done.stderr


def test_aliases_that_mlflow_keeps_for_itself_are_shown_under_another_name() -> None:
    assert [alias_in_mlflow(name) for name in ("released", "latest", "v12", "v1x")] == [
        "released",
        "hansa-latest",
        "hansa-v12",
        "v1x",
    ]
