"""The review of reports through a real Label Studio: export, annotations by two people, import, all checked.

Label Studio wants an environment of its own, since its dependencies are many and pinned:

    python -m venv label-studio-env && label-studio-env/bin/pip install label-studio==1.23.2
    python tests/benchmarks/label_studio_round_trip.py --label-studio label-studio-env/bin/label-studio

The script starts the server on a port of this machine with a data folder of its own, makes a project with our
`labelling.xml`, imports our `tasks.json`, serves the images as local files, annotates as two people over the API that
the browser uses (session and CSRF token, so that the kind of API tokens does not matter), exports JSON and JSON-MIN,
and imports both. It stops with an error where something differs from what was annotated. Nothing is downloaded.

With `--serve` the server stays until Ctrl-C, to look at the forms: user and password are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from cogalign.cognition.keywords import extract
from cogalign.cognition.report import render
from cogalign.cognition.taxonomy import name_of
from cogalign.cognition.templates import template_report
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, CaseSetWriter, read_case_set
from cogalign.data.phantom import write_phantom
from cogalign.data.review.commands import export_review, import_review
from cogalign.data.review.fields import form_of, report_of
from cogalign.data.review.journal import read_journal
from cogalign.recipe import PhantomSettings

FIRST, SECOND, PASSWORD = "first@example.org", "second@example.org", "Round-trip-1"
CASES = 6


def main() -> None:
    """Run the round trip and print what happens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label-studio", type=Path, required=True, metavar="FILE", help="the label-studio command")
    parser.add_argument("--case-set", type=Path, metavar="DIR", help="a case set; its first cases are taken")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for all that is written")
    parser.add_argument("--port", type=int, default=8089)
    parser.add_argument("--serve", action="store_true", help="keep the server until Ctrl-C")
    found = parser.parse_args()
    work = found.work or Path(tempfile.mkdtemp(prefix="label-studio-round-trip-"))
    cases = case_set(found.case_set, work / "cases")
    print(export_review(cases.root, work / "project", "label-studio", reports=True))
    with server(found.label_studio, found.port, cases.root, work) as address:
        first, project = set_up(address, work / "project", cases)
        second = Person.invited(first, SECOND)
        tasks = check_tasks(first, project, work / "project")
        annotate(first, second, tasks, cases)
        exports = [first.export(project, kind, work) for kind in ("JSON", "JSON_MIN")]
        for path in exports:
            check_import(path, cases, work / f"new-{path.stem}")
        if found.serve:
            print(f"serving {address}/projects/{project}/data: {FIRST}, {PASSWORD}; Ctrl-C ends it")
            wait_for_interrupt()
    print(f"the round trip holds; all files are in {work}")


def wait_for_interrupt() -> None:
    """Wait for Ctrl-C."""
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        print("ending")


def case_set(source: Path | None, folder: Path) -> CaseSet:
    """A few cases of one finding with reports (templates where there are none); phantoms without a case set."""
    if source is None:
        source = write_phantom(
            PhantomSettings(train=4 * CASES, validation=1, test=1, size=192), folder.with_name("phantoms")
        )
    full = read_case_set(source)
    chosen = [case for case in full.cases if len(case.findings) == 1 and not case.is_normal][:CASES]
    if len(chosen) < CASES:
        raise SystemExit(f"{source}: found {len(chosen)} cases of one finding, wanted {CASES}")
    with CaseSetWriter(folder) as writer:
        for case in chosen:
            report = template_report(case.findings, case.organ) if form_of(case).empty else report_of(case)
            new = replace(
                case,
                file_name=f"images/{case.id.replace(':', '-')}.png",
                mask_file_name=f"masks/{case.id.replace(':', '-')}.png" if case.mask_file_name else None,
                answer=render(report),
                keywords=extract(report),
            )
            writer.add(new, full.path(case.file_name), full.mask(case))
    return read_case_set(folder)


@contextmanager
def server(command: Path, port: int, root: Path, work: Path) -> Iterator[str]:
    """A Label Studio on this machine; ends with the block."""
    environment = {
        **os.environ,
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root.resolve()),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SECRET_KEY": "only for this run",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    address = f"http://127.0.0.1:{port}"
    arguments = ["start", "--no-browser", "--port", str(port), "--internal-host", "127.0.0.1", "--username", FIRST]
    arguments += ["--password", PASSWORD, "--data-dir", str((work / "data").resolve())]
    (work / "data").mkdir(parents=True, exist_ok=True)
    with (work / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(command), *arguments], env=environment, stdout=log, stderr=log, start_new_session=True, cwd=work
        )
    began = time.monotonic()
    try:
        while not _healthy(address):
            if process.poll() is not None or time.monotonic() - began > 600:
                raise SystemExit(f"Label Studio did not start, see {work / 'server.log'}")
            time.sleep(1)
        print(f"Label Studio answers at {address} after {time.monotonic() - began:.0f} s")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


class Person:
    """Someone who is logged in, as with a browser."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=120, follow_redirects=True)

    @classmethod
    def logged_in(cls, address: str, email: str) -> Person:
        """Log in with e-mail address and password."""
        person = cls(address)
        person._form("/user/login/", {"email": email, "password": PASSWORD})
        return person

    @classmethod
    def invited(cls, by: Person, email: str) -> Person:
        """Sign up by the invitation of somebody else."""
        link = by.get("/api/invite")["invite_url"]
        person = cls(str(by.http.base_url))
        person._form(link, {"email": email, "password": PASSWORD, "allow_newsletters": "false"})
        print(f"{email} signed up: {person.get('/api/current-user/whoami')['email']}")
        return person

    def _form(self, page: str, fields: dict[str, str]) -> None:
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.http.get(page).text)
        assert token, f"{page}: no form"
        answer = self.http.post(page, data={**fields, "csrfmiddlewaretoken": token[1]}, headers={"Referer": page})
        answer.raise_for_status()
        assert "/user/" not in answer.url.path, f"{page}: not accepted: {re.findall('error.*', answer.text)[:3]}"

    def get(self, path: str, **query: Any) -> Any:
        """The JSON at an address."""
        return self._json(self.http.get(path, params=query))

    def post(self, path: str, content: Any, method: str = "POST") -> Any:
        """The answer to a JSON."""
        headers = {"X-CSRFToken": self.http.cookies.get("csrftoken") or ""}
        return self._json(self.http.request(method, path, json=content, headers=headers))

    def _json(self, answer: httpx.Response) -> Any:
        assert answer.is_success, f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text[:500]}"
        return answer.json()

    def export(self, project: int, kind: str, work: Path) -> Path:
        """Export the project to a file."""
        answer = self.http.get(f"/api/projects/{project}/export", params={"exportType": kind})
        answer.raise_for_status()
        path = work / f"{kind}.json"
        path.write_bytes(answer.content)
        print(f"exported {kind}: {len(json.loads(answer.content))} entries, {len(answer.content)} bytes")
        return path


def set_up(address: str, folder: Path, cases: CaseSet) -> tuple[Person, int]:
    """A project with our interface, our tasks and our images."""
    person = Person.logged_in(address, FIRST)
    print(f"{FIRST} logged in, Label Studio {person.get('/api/version')['label-studio-os-package']['version']}")
    config = (folder / "labelling.xml").read_text(encoding="utf-8")
    project = person.post("/api/projects/", {"title": "Round trip", "label_config": config, "maximum_annotations": 2})[
        "id"
    ]
    storage = {
        "project": project,
        "title": "images",
        "path": str((cases.root / "images").resolve()),
        "use_blob_urls": True,
    }
    person.post("/api/storages/localfiles", storage)
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    done = person.post(f"/api/projects/{project}/import", tasks)
    print(
        f"project {project}: the interface is valid; imported {done['task_count']} tasks, {done['prediction_count']} predictions"
    )
    assert (done["task_count"], done["prediction_count"]) == (len(tasks), len(tasks))
    return person, project


def check_tasks(person: Person, project: int, folder: Path) -> list[dict[str, Any]]:
    """The tasks as Label Studio has them: predictions as we wrote them, images that are served."""
    ours = {
        task["data"]["cogalign_id"]: task for task in json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    }
    listed = person.get("/api/tasks", project=project, page_size=100)["tasks"]
    tasks = [person.get(f"/api/tasks/{task['id']}/") for task in listed]
    for task in tasks:
        (prediction,) = task["predictions"]
        wanted = ours[task["data"]["cogalign_id"]]["predictions"][0]["result"]
        assert [(r["from_name"], r["value"]) for r in prediction["result"]] == [
            (r["from_name"], r["value"]) for r in wanted
        ]
        image = person.http.get(task["data"]["image"])
        assert image.status_code == 200 and image.headers["content-type"].startswith("image/"), task["data"]["image"]
    print(f"{len(tasks)} tasks hold our predictions, and their images are served")
    return sorted(tasks, key=lambda task: task["id"])


def changed(task: dict[str, Any], verdict: str, **values: list[str]) -> list[dict[str, Any]]:
    """The results of a prediction with other contents of some controls, and a verdict on the report."""
    results = []
    for result in json.loads(json.dumps(task["predictions"][0]["result"])):
        control = result["from_name"]
        if control in values:
            kind = "choices" if result["type"] == "choices" else "text"
            result["value"] = {kind: values[control]}
        results.append(result)
    chosen = {"from_name": "report_verdict", "to_name": "image", "type": "choices", "value": {"choices": [verdict]}}
    return [*results, chosen]


def annotate(first: Person, second: Person, tasks: list[dict[str, Any]], cases: CaseSet) -> None:
    """Two people at work: agreement, a difference, the same correction, another finding, a rejection, a skip, a draft."""

    def hand_in(person: Person, task: dict[str, Any], result: list[dict[str, Any]], **fields: Any) -> None:
        person.post(f"/api/tasks/{task['id']}/annotations/", {"result": result, "lead_time": 12.5, **fields})

    other = other_finding(case_of(tasks[3], cases))
    plans = (
        (changed(tasks[0], "pass"), changed(tasks[0], "pass")),
        (changed(tasks[1], "pass"), changed(tasks[1], "revised", **LOCATION)),
        (changed(tasks[2], "revised", **MORPHOLOGY), changed(tasks[2], "revised", **MORPHOLOGY)),
        (changed(tasks[3], "revised", report_findings=[other]), changed(tasks[3], "revised", report_findings=[other])),
        (changed(tasks[4], "reject"), changed(tasks[4], "reject")),
    )
    for task, (one, two) in zip(tasks, plans, strict=False):
        hand_in(first, task, one)
        hand_in(second, task, two)
    hand_in(first, tasks[5], [], was_cancelled=True)
    first.post(f"/api/tasks/{tasks[5]['id']}/drafts", {"result": changed(tasks[5], "reject"), "lead_time": 3})
    hand_in(second, tasks[5], changed(tasks[5], "pass"))
    print(
        "annotated: 0 both pass, 1 differ, 2 same correction, 3 other finding, 4 both reject, 5 skipped, draft and pass"
    )


LOCATION = {
    "report_location": ["Colon, sigmoid, white light."],
    "report_keywords_location": ["colon", "sigmoid\nwhite light"],
}
MORPHOLOGY = {
    "report_morphology": ["Sessile raised lesion of 6 mm, Paris Is."],
    "report_keywords_morphology": ["sessile", "6 mm", "Paris Is"],
}


def case_of(task: dict[str, Any], cases: CaseSet) -> Case:
    """The case of a task."""
    return cases.by_id[task["data"]["cogalign_id"]]


def other_finding(case: Case) -> str:
    """The name of a finding that the case does not have."""
    return name_of("tumor" if "ulcer" in case.findings else "ulcer")


def check_import(path: Path, cases: CaseSet, out: Path) -> None:
    """Import an export and compare with what was annotated."""
    try:
        import_review([path], cases.root, out)
    except ValueError as error:
        print(f"{path.name} without a rule is refused: {error}")
    else:
        raise AssertionError("the difference on case 1 was not refused")
    counts = import_review([path], cases.root, out, resolve="latest")
    print(f"{path.name} with --resolve latest: {counts}")
    new = read_case_set(out)
    order = [case.id for case in cases.cases]
    assert order[4] not in new.by_id and set(new.by_id) == set(order) - {order[4]}
    statuses = [new.by_id[name].attributes["annotation"]["status"] for name in order if name in new.by_id]
    assert statuses == ["passed", "revised", "revised", "revised", "passed"], statuses
    assert new.by_id[order[0]].answer == cases.by_id[order[0]].answer
    assert "Colon, sigmoid, white light." in new.by_id[order[1]].answer
    assert new.by_id[order[1]].keywords["location"] == ["colon", "sigmoid", "white light"]
    assert "Sessile raised lesion of 6 mm, Paris Is." in new.by_id[order[2]].answer
    renamed = new.by_id[order[3]]
    assert [name_of(finding) for finding in renamed.findings] == [other_finding(cases.by_id[order[3]])]
    for name in new.by_id:
        before, after = cases.mask(cases.by_id[name]), new.mask(new.by_id[name])
        assert (before is None) == (after is None) and (before is None or (before == after).all()), name
    entries = read_journal(out)
    people = sorted({entry.annotator for entry in entries})
    changes = [
        (e.case, e.annotator, e.field, e.decision, e.taken, e.lead_time) for e in entries if e.decision == "revised"
    ]
    print(f"journal: {len(entries)} lines of {people}; revised:", *changes, sep="\n  ")
    print((out / "agreement.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
