"""Every process of a lab is killed at random moments of every stage; the result is that of an undisturbed run."""

from __future__ import annotations

import shutil

import pytest

from opticstream.sim.demo import write_demo
from opticstream.testing.chaos.kills import ChaosRun, Report, summary
from opticstream.testing.chaos.lab import Lab
from opticstream.testing.chaos.outcome import Outcome, differences, temporaries
from opticstream.testing.chaos.schedule import STAGES, VICTIMS, Strike, strikes_for_projects

pytestmark = [pytest.mark.server, pytest.mark.timeout(2400)]

PROJECTS = 8
LONG = strikes_for_projects(7, 72, projects=PROJECTS)
SHORT = [
    Strike("batch", "worker", 0.5),
    Strike("mosaic", "server", 0.6),
    Strike("axis", "host", 0.5),
]


def disturbed(folder, calm: Outcome, strikes, **lab_options) -> Report:
    """Run the small demo in a lab under some strikes, and check that nothing shows of them in the end."""
    write_demo(folder, slices=1, small=True)
    with Lab(folder, **lab_options) as lab:
        chaos = ChaosRun(lab, calm)
        report = chaos.run(strikes)
    print("", summary([report]), *report.kills, f"missed: {', '.join(map(str, report.missed))}", sep="\n")
    assert lab.processes() == []
    assert report.broken == []
    assert differences(chaos.project, calm, unwritten=len(report.kills)) == []
    print(f"left behind: {[path.name for path in temporaries(chaos.project.paths.base)]}")
    shutil.rmtree(folder)
    return report


@pytest.mark.slow
def test_killed_again_and_again_the_project_ends_with_the_undisturbed_result(tmp_path, calm):
    report = disturbed(tmp_path / "lab", calm, SHORT)
    assert len(report.kills) >= len(SHORT) - 1, report.missed  # a quick machine is sooner done than a strike is aimed
    assert sum(bool(struck.killed) for struck in report.kills) >= 1


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    return []


@pytest.mark.slow
@pytest.mark.parametrize("number", range(PROJECTS))
def test_random_kills_leave_no_trace(tmp_path, calm, reports, number):
    pools = ((),) if number % 2 == 0 else (("tile", "state"), ("stitch", "register", "upload"))
    reports.append(disturbed(tmp_path / "lab", calm, LONG[number], pools=pools))
    print(f"\nin all:\n{summary(reports)}")
    if len(reports) == PROJECTS:
        kills = [struck for report in reports for struck in report.kills]
        assert len(kills) >= 60
        assert {struck.strike.stage for struck in kills} == set(STAGES)
        assert {struck.strike.victim for struck in kills} == set(VICTIMS)
