"""A diagnosis in words, figures and a page, of records made by hand."""

import copy
import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from benchmark.diagnosis import page, words
from benchmark.diagnosis.drawing import DARK, LIGHT
from benchmark.diagnosis.figures import FIGURES, PARTS, Sheet, drawings, sheets
from benchmark.diagnosis.words import LAG, READING, paragraph, table, told
from tests.chromium import SIZES, opened, started
from tests.records import FULL, MODEL, UNITS, full
from tests.test_page import HOSTILE, Reader

SECTIONS = [name for name in FULL if name != "schema"]


def without_numbers(value: Any) -> Any:
    """The same shape with nothing known."""
    if isinstance(value, dict):
        return {key: without_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_numbers(inner) for inner in value]
    return None if isinstance(value, float) else value


# -- words ----------------------------------------------------------------------------------------


def test_every_number_is_told():
    said = told(full())
    units = said["Units"]
    assert units.startswith("1 of 6 units is written and read.")
    # the largest first
    order = [units.index(text) for text in ("Unit 3 carries", "Unit 5 carries", "unit 2", "unit 4")]
    assert order == sorted(order)
    assert "Unit 3 carries at most 0.80 nats that the decoder never reads: another" in units
    assert "in its place costs 6.17 nats (s.e. 0.41)" in units
    assert "Whether the decoder reads unit 2, at most 0.43 nats, is undecided" in units
    assert "signal of unit 4: 0.01 nats, of at most 0.32 nats" in units
    assert "The mean of unit 1 moves with the sentence, but its noise drowns it" in units
    assert "Unit 0 is nearly the same for every sentence: less than 0.01 nats" in units
    assert "Unit 0 pays 0.51 nats for an aggregate off the prior" in units
    assert "unit 1 follows dropout or a blotted word more" in units
    assert "(reliability 0.31)" in units
    assert "The KL of 2 of 6 stays below 0.05 nats in at least 99% of the sentences." in units
    decoder = said["Decoder"]
    assert "At the posteriors' means a sentence costs 0.90 nats less." in decoder
    assert "Another sentence's code costs 14.40 nats (s.e. 0.50), one of the prior 12.40" in decoder
    assert "Half of that is at the first 2 of 4 words." in decoder  # 10 of 14.4
    assert "by 0.73 nats (s.e. 0.03) a word, another word before them by 0.30" in decoder
    assert "Over codes of the prior log p(x|z) deviates by 3.10 nats." in decoder
    assert "Of 1.64 nats in the code it provably reads 1.43; 0.21 nats (s.e. 0.03)" in decoder
    encoder = said["Encoder"]
    assert "20 refinement steps of each posterior gain 2.10 nats (s.e. 0.20)" in encoder
    assert "the KL rises by 0.50" in encoder and "basin" not in encoder
    assert "is 2.90 nats (s.e. 0.10) from the prior, the encoder's 2.10" in encoder
    assert "90% in the encoder's last state, 60% in the posterior's means and 20% in the" in encoder
    assert "of that 33% is lost in the head and 44% is lost to the posterior's noise." in encoder
    assert "of the length a linear probe finds 1% in the encoder's last state and 0% in" in encoder
    assert "the encoder's last state has next to none of it." in encoder
    lost = "1 of 2 dead units once had a signal: unit 1's reached 0.30 at step 10."
    steady = "From step 20 to 120 unit 4's means moved the most, by 30.0% of their variance."
    assert said["Training"] == f"{lost} {steady}"
    gradients = said["Gradients"]
    assert "1.3 at step 1 and -0.013 at step 120, 25% of the noise then the codes' own" in gradients
    assert "of the KL 0.064 at step 1 and 6.4 at step 120" in gradients
    branches = said["Interventions"]
    assert "from step 12 for 36 steps the code lives given a decoder that forgot (KL" in branches
    assert "no change (KL 0.01, z-gain 0.02) and a start of the encoder alone (div" in branches
    assert said["Not measured"] == "residuals, as this model has a latent already."
    tried = said["Try"].rstrip(".").split("; ")
    assert tried[0] == "a longer or stronger encoder update per decoder step"
    assert len({*tried}) == len(tried) == 8
    assert paragraph(full()).splitlines()[-1] == f"Try: {said['Try']}"


def alone(verdict: str, n: int, **changes: float) -> dict[str, Any]:
    """A record of n units of one verdict, each as the one of FULL, but for these."""
    d = FULL["verdicts"].index(verdict)
    column = {k: [v[d]] * n for k, v in UNITS.items() if k != "reliability"}
    column |= {name: [value] * n for name, value in changes.items()}
    return {"units": column, "verdicts": [verdict] * n, "thresholds": FULL["thresholds"]}


@pytest.mark.parametrize("verdict", READING)
def test_units_of_one_verdict_are_told_together(verdict):
    one, many = (told(alone(verdict, n))["Units"] for n in (1, 20))
    assert re.search(r"\b[Uu]nit 0\b", one) and "1 unit" in one and "together" not in one
    assert "units 0, 1, 2, 3, 4, 5 and 14 more" in many.lower() and " nats together" in many
    total = nats_of(many)
    assert total == pytest.approx(20 * UNITS["bound"][FULL["verdicts"].index(verdict)], abs=0.01)


@pytest.mark.parametrize("verdict", ["unread", "undecided"])
def test_what_others_say_too_needs_no_other_decoder(verdict):
    one = alone(verdict, 1, alone=1.5, alone_error=0.1) | {"flags": [["redundant"]]}
    said = told(one)
    assert "alone it gains 1.50 nats (s.e. 0.10): others say the same." in said["Units"]
    assert "Try" not in said and told(one | {"flags": [[]]})["Try"]


@pytest.mark.parametrize(
    ("state", "mean", "code", "lost"),
    [
        ([0.25, 0.02], None, [0.16, 0.02], ["36% is lost on the way to the code"]),
        ([0.25, 0.02], [0.25, 0.02], [0.16, 0.02], ["36% is lost to the posterior's noise"]),
        ([0.25, 0.02], [0.18, 0.02], [0.06, 0.02], ["28% is lost in the head", "48% is lost to"]),
        ([0.10, 0.10], [0.06, 0.10], [0.02, 0.10], []),  # which the errors span
        (None, [0.25, 0.02], [0.16, 0.02], ["36% is lost to the posterior's noise"]),
    ],
)
def test_a_loss_is_told_where_it_is_and_beyond_two_errors(state, mean, code, lost):
    found = {"probes": {"label": {"state": state, "mean": mean, "code": code}}}
    line = told(found)["Encoder"]
    assert line.count("is lost") == len(lost) and all(part in line for part in lost)


def test_a_share_is_not_rounded_to_all():
    record = full()
    record["thresholds"] = record["thresholds"] | {"delta": 0.004}
    assert "in at least 99.6% of the sentences" in told(record)["Units"]
    assert "in 99.6% of the sentences" in made(record)["collapse"].title


def nats_of(text: str) -> float:
    found = re.search(r"at most ([\d.]+) nats together", text)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize(
    ("shuffled", "said"),
    [
        ([14.4, 0.5], "Another sentence's code costs"),
        ([0.01, 0.01], "No information about the sentence passes"),
        ([0.05, 0.03], "cannot be told"),
        ([-0.2, 0.05], "No information about the sentence passes"),
    ],
)
def test_the_decoder_is_called_deaf_only_where_it_is_sure(shuffled, said):
    record = full(reading={"shuffled": shuffled, "by_position": FULL["reading"]["by_position"]})
    decoder = told(record)["Decoder"]
    assert said in decoder and ("Half of that" in decoder) == (shuffled[0] > 1)


@pytest.mark.parametrize("verdict", LAG)
def test_each_verdict_on_the_encoder_has_its_words(verdict):
    said = told(full(lag=FULL["lag"] | {"verdict": verdict}, interventions=None))
    assert "gain 2.10 nats" in said["Encoder"]
    assert ("encoder update" in said["Try"]) == (verdict == "encoder lags")
    assert ("refining each posterior" in said["Try"]) == (verdict == "encoder errs")


def test_the_better_start_is_told():
    lag = copy.deepcopy(FULL["lag"]) | {"basins": [0.9, 0.1]}
    lag["prior"]["elbo"][-1] = [3.0, 0.2]
    said = told(full(lag=lag))["Encoder"]
    assert "gain 3.00 nats" in said and "by 0.40" in said
    assert "end 0.90 nats (s.e. 0.10) higher" in said


@pytest.mark.parametrize("cause", [*words.CAUSES, "lag and weak signal", "none of these"])
def test_a_cause_has_its_remedy(cause):
    record = full(lag=None, interventions=FULL["interventions"] | {"cause": cause})
    said = told(record)["Try"]
    for name in cause.split(" and "):
        assert name not in words.CAUSES or words.CAUSES[name] in said
    assert ("encoder update" in said) == ("lag" in cause)


def test_a_rate_that_is_paid_for_nothing_needs_no_floor():
    collapsed = alone("weak", 3)
    assert "a floor under the rate" in told(collapsed)["Try"]
    shifted = told(collapsed | {"flags": [["off prior"]] * 3})["Try"]
    assert "a floor under the rate" not in shifted and "one that a shift can meet" in shifted


def test_one_reason_is_told_once():
    notes = {"lag": "it has steps.", "plane": "it has steps", "reading/apart": "no", "x": "y"}
    assert told({"notes": notes})["Not measured"] == "lag and plane, as it has steps. x, as y."


def test_dead_units_without_a_signal():
    flat = FULL["trajectory"] | {"signal": [[0.001] * 6] * 3}
    said = told(full(trajectory=flat, drift=None))["Training"]
    assert said == "None of 2 dead units ever had a signal of 0.01."
    alive = full(verdicts=["active"] * 6, flags=[[]] * 6, drift=None)
    assert "Training" not in told(alive) and "weak" not in paragraph(alive)


def test_a_language_model_is_asked_whether_a_latent_could_pay():
    said = told(MODEL)
    assert {*said} == {"Units", "Language model"}
    could = said["Language model"]
    assert "bigrams 2.31 (s.e. 0.21)" in could and "still learned" in could
    assert "from 1.2 on it counts" in could
    assert table(MODEL) == "This model has no latent units."


def test_the_table_has_a_line_a_unit_the_largest_first():
    head, *lines = table(full()).splitlines()
    assert [int(line.split()[0]) for line in lines] == [3, 5, 2, 4, 1, 0]
    assert len({len(line[: 16 * 7]) for line in (head, *lines)}) == 1
    assert lines[0].split()[1:15] == [
        *("0.800", "0.200", "0.810", "2.100", "0.750", "0.050", "0.010", "0.800", "0.780"),
        *("0.004", "0.010", "0.000", "0.010", "0.900"),
    ]
    assert lines[-1].endswith("weak, off prior")
    unknown = table(full(units=UNITS | {"information": None})).splitlines()[1]
    assert unknown.split()[9] == "-"
    large = table(full(units=UNITS | {"rate": [1234.5] * 6, "read": [-10.1234] * 6}))
    assert large.splitlines()[1].split()[3] == "1234.5" and " -10.12 " in large


@pytest.mark.parametrize("section", [*SECTIONS, *(["reading", n] for n in FULL["reading"])])
def test_no_section_is_needed(section):
    """Nor anything in it."""
    null, absent, unknown = full(), full(), full()
    *path, name = [section] if isinstance(section, str) else section
    of_null, of_absent, part = ([*map(each.get, path), each][0] for each in (null, absent, unknown))
    of_null[name] = None
    del of_absent[name]
    part[name] = without_numbers(part[name])
    assert paragraph(null) + table(null) == paragraph(absent) + table(absent)
    assert [name for name, _ in sheets(null)] == [name for name, _ in sheets(absent)]
    said = paragraph(unknown) + table(unknown) + paragraph(null)
    assert "nan" not in said.lower() and not re.search(r"\bNone\b(?! of)", said)
    text = page.html(unknown)
    Reader(text)
    for drawn in re.findall("<svg.*?</svg>", text, re.DOTALL):
        assert ElementTree.fromstring(drawn).get("role")
        assert "nan" not in re.sub('aria-label="[^"]*"', "", drawn).lower()


def test_of_nothing_nothing_is_said():
    assert told({}) == {} and paragraph({}) == "" and drawings({}, "x") == []
    Reader(page.html({}))
    assert told(full(reading=None, lag=None, probes=None, gradients=None)).keys() == {
        *("Units", "Decoder", "Training", "Interventions", "Not measured", "Try")
    }


# -- figures --------------------------------------------------------------------------------------


def made(record: dict[str, Any]) -> dict[str, Sheet]:
    return dict(sheets(record))


def lines(sheet: Sheet, gid: str, panel: int = 0) -> list[np.ndarray]:
    drawn = sheet.figure.axes[panel].lines
    return [np.array(line.get_xydata()) for line in drawn if line.get_gid() == gid]


def test_bars_stand_for_the_parts_of_the_rate():
    sheet = made(full())["units"]
    (panel,) = sheet.figure.axes
    drawn: dict[str, dict[int, tuple[float, float]]] = {}
    for patch in panel.patches:
        name = str(patch.get_gid()).removesuffix("-cells")
        for box in patch.get_path().to_polygons():
            y = round(float(np.mean(box[:4, 1])))
            drawn.setdefault(name, {})[y] = (box[:, 0].min(), box[:, 0].max())
    order = [3, 5, 2, 4, 1, 0]
    for y, d in enumerate(order):
        edge = 0.0
        for name in PARTS:
            assert drawn[name][y] == pytest.approx((edge, edge + UNITS[name][d]))
            edge += UNITS[name][d]
    (marks,) = lines(sheet, "information")
    known = [(UNITS["information"][d], y) for y, d in enumerate(order)]
    assert marks == pytest.approx(np.array(known))
    texts = [text.get_text() for text in panel.texts]
    assert "3  unread" in texts and "6.17 ± 0.41" in texts
    assert "2.68 nats of rate at most 2.11 inform" in sheet.title
    assert "Unit 5, active: capacity 0.50, heterogeneity 0.04, mismatch 0.02" in sheet.summary


def test_a_part_below_zero_lies_left_of_all():
    """Of steps that share information."""
    units = UNITS | {"mismatch": [-0.2] * 6}
    panel = made(full(units=units))["units"].figure.axes[0]
    (patch,) = (p for p in panel.patches if p.get_gid() == "mismatch-cells")
    box = patch.get_path().get_extents()
    assert (box.x0, box.x1) == pytest.approx((-0.2, 0)) and panel.get_xlim()[0] <= -0.2


def test_noise_does_not_look_like_a_code():
    tiny = {k: [1e-4] for k in UNITS if k != "reliability"}
    dead = {"units": tiny, "verdicts": ["weak"], "thresholds": FULL["thresholds"]}
    assert made(dead)["units"].figure.axes[0].get_xlim()[1] > 0.05


def test_along_a_contour_the_capacity_is_one():
    sheet = made(full())["signal"]
    (panel,) = sheet.figure.axes
    contours = lines(sheet, "capacity")
    said = {float(t.get_text()[4:]) for t in panel.texts if t.get_text().startswith("C = ")}
    along = [0.5 * np.log1p(line[:, 1] / line[:, 0]) for line in contours]
    found = {round(float(capacity), 6) for each in along for capacity in each}
    assert len(contours) >= 4 and len(found) == len(contours) and said and said <= found
    (prior,) = lines(sheet, "prior")
    assert prior.sum(1) == pytest.approx(np.ones(len(prior)))
    for d, verdict in enumerate(FULL["verdicts"]):
        (points,) = lines(sheet, verdict)
        assert points == pytest.approx(np.array([[UNITS["noise"][d], UNITS["signal"][d]]]))
    assert "In 3 of 6 units" in sheet.title


def test_collapsed_units_are_counted():
    (steps,) = lines(made(full())["collapse"], "collapsed")
    for end in UNITS["epsilon"]:
        below = sum(other <= end for other in UNITS["epsilon"])
        assert steps[steps[:, 0] <= end][-1, 1] == below
    assert steps[-1, 1] == 6 and steps[0, 1] == 0


def test_probes_are_of_the_record():
    bars = made(full())["probes"].figure.axes[0].patches
    assert [bar.get_path().get_extents().x1 for bar in bars] == [0.9, 0.6, 0.2, 0.01, 0]
    assert [bar.get_gid() for bar in bars[:3]] == [f"{place}-cells" for place in words.PLACES]


def test_a_trajectory_is_of_the_record():
    sheet = made(full())["trajectory"]
    signal, noise = sheet.figure.axes
    assert signal.get_yscale() == noise.get_yscale() == "log"
    for d in range(6):
        for panel, name in ((0, "signal"), (1, "noise")):
            (line,) = lines(sheet, f"unit{d}", panel)
            assert line[:, 0].tolist() == [10, 60, 120]
            assert line[:, 1].tolist() == [row[d] for row in FULL["trajectory"][name]]
    assert sheet.title == "5 of 6 units ever had a signal, 5 at the end"


def test_the_band_is_two_standard_errors():
    sheet = made(full())["positions"]
    (panel,) = sheet.figure.axes
    (gain,) = lines(sheet, "gain")
    assert gain[:, 1].tolist() == FULL["reading"]["by_position"]["gain"]
    (band,) = panel.collections
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    columns = (FULL["reading"]["by_position"][k] for k in ("position", "gain", "error"))
    for x, mean, error in zip(*columns, strict=True):
        at = corners[corners[:, 0] == x, 1]
        assert (at.min(), at.max()) == pytest.approx((mean - 2 * error, mean + 2 * error))
    assert sheet.title == "Half of what the code gains it gains by word 2 of 4"
    deaf = FULL["reading"]["by_position"] | {"gain": [0.1, -0.2, 0.2, 0.0]}
    assert "nothing" in made(full(reading={"by_position": deaf}))["positions"].title


def test_gradients_below_the_floor_are_marked():
    sheet = made(full())["gradients"]
    (below,), (rec,) = lines(sheet, "rec-below"), lines(sheet, "rec")
    floor = rec[:, 1].min()
    assert below.tolist() == [[120, floor]] and 0 < floor < 0.064
    assert rec[:2, 1].tolist() == [1.28, 0.064] and not len(lines(sheet, "kl-below")[0])


def test_drift_is_of_the_record():
    sheet = made(full())["drift"]
    for d in range(6):
        (line,) = lines(sheet, f"unit{d}")
        assert line.tolist() == [[x, FULL["drift"]["drift"][i][d]] for i, x in ((1, 20), (2, 120))]
    assert "move by 0.30 of" in sheet.title


def test_branches_show_what_lives():
    sheet = made(full())["interventions"]
    kl, gain = sheet.figure.axes
    widths = {str(p.get_gid()): p.get_path().get_extents().x1 for p in kl.patches}
    assert widths == {"unchanged-cells": 0.01, "reset-cells": 1.7}  # the third diverged
    colours = {str(p.get_gid()): p.get_facecolor()[:3] for p in gain.patches}
    assert colours["unchanged-cells"] != colours["reset-cells"]
    assert [t.get_text() for t in gain.texts if t.get_text() in ("lives", "dies", "diverges")] == [
        *("dies", "diverges", "lives")
    ]
    assert "1 of 3 branches; cause: lag" in sheet.title and "KL 1.70" in sheet.summary


def test_a_language_model_has_a_figure_of_its_own():
    (name,) = made(MODEL)
    assert name == "residuals" and "2.31 by bigrams" in made(MODEL)[name].title


def test_as_many_units_as_there_are():
    n = 200
    units = {k: (v * 40)[:n] for k, v in UNITS.items() if k != "reliability"}
    many = full(
        units=units,
        verdicts=(FULL["verdicts"] * 40)[:n],
        flags=[[]] * n,
        trajectory=None,
        drift=None,
    )
    found = made(many)
    assert "176 more units are not shown" in found["units"].caption
    assert len(page.html(many)) < 500_000 and table(many).count("\n") == n


# -- the page -------------------------------------------------------------------------------------


def test_figures_are_xml_with_ids_of_their_own():
    found = drawings(full(), "one") + drawings(MODEL, "two")
    assert {drawing.name for drawing in found} == {*FIGURES}
    whole = "".join(drawing.page for drawing in found)
    ids = re.findall(r'\bid="([^"]*)"', whole)
    assert len({*ids}) == len(ids) > 10 and all(i.startswith(("one-", "two-")) for i in ids)
    assert {*re.findall(r'(?:href="#|url\(#)([^")]*)', whole)} == {*ids}
    assert {*re.findall(r'http[^"]*', whole)} == {"http://www.w3.org/2000/svg"}
    assert not re.search("#[0-9a-f]{6}\\b", whole) and "<style" not in whole
    assert {*re.findall(r"var\(--(\w+)\)", whole)} <= {*LIGHT} == {*DARK}
    for drawing in found:
        root = ElementTree.fromstring(drawing.page)
        summary = html.unescape(root.get("aria-label") or "")
        assert root.get("role") == "img" and drawing.title in summary and len(summary) > 60
        assert re.search(r"\d", summary) and drawing.caption


def test_only_the_figures_that_were_asked_for():
    found = drawings(full(), "x", ("signal", "units", "residuals"))
    assert [drawing.name for drawing in found] == ["signal", "units"]


SAME = """
import hashlib, json, sys
sys.modules["torch"] = None  # any import of it fails
from benchmark.diagnosis import words
assert "matplotlib" not in sys.modules
from benchmark.diagnosis import page
record = json.loads(sys.stdin.read())
whole = page.html(record) + words.paragraph(record) + words.table(record)
print(hashlib.sha256(whole.encode()).hexdigest())
"""


def test_the_same_record_gives_the_same_bytes_without_torch():
    said = {
        subprocess.run(
            [sys.executable, "-c", SAME],
            **{"check": True, "capture_output": True, "text": True, "input": json.dumps(full())},
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and math.log2(int(said.pop(), 16)) > 200


def test_what_a_record_says_stays_text():
    cell = dict.fromkeys(("dataset", "method", "variant"), HOSTILE) | {"seed": 0}
    lag = FULL["lag"] | {"verdict": HOSTILE}
    cause = FULL["interventions"] | {"cause": HOSTILE}
    text = page.html(full(cell=cell, notes={HOSTILE: HOSTILE}, lag=lag, interventions=cause))
    found = Reader(text)
    assert [tag for tag, _ in found.elements].count("script") == 0
    assert "<script" not in text and text.count("&lt;script&gt;alert(1)") > 3
    assert found.attributes("src") == [] and not re.search(r"@import|url\((?!#)", text)
    assert all(link[0] == "#" for link in found.attributes("href"))
    ids = found.attributes("id")
    assert len(ids) == len({*ids})
    assert {word for value in found.attributes("aria-labelledby") for word in value.split()} <= {
        *ids
    }
    assert any("default-src 'none'" in (value or "") for value in found.attributes("content"))


def test_the_page_holds_all_that_is_known():
    text = html.unescape(page.html(full()))
    for said in told(full()).values():
        assert said in text
    assert text.count("<svg") == len(FIGURES) - 1 and text.count('<tr><th scope="row">') == 6
    assert "reading, by_position" in text and "signal 0.01" in text


@pytest.fixture(scope="module")
def chromium():
    program = shutil.which("chromium")
    if program is None:
        reason = "no chromium here, which .ci/run installs"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with started(program) as browser:
        yield browser


@pytest.mark.parametrize(("size", "scheme"), [*zip(SIZES, ("light", "dark"), strict=True)])
def test_it_is_accessible_and_fits_the_screen(chromium, tmp_path: Path, size, scheme):
    for name, record in (("full", full()), ("model", MODEL)):
        (tmp_path / f"{name}.html").write_text(page.html(record))
        address = f"file://{tmp_path / name}.html"
        with opened(chromium, address, viewport=SIZES[size], color_scheme=scheme) as shown:
            found = Axe().run(shown).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
            width = shown.evaluate("document.documentElement.scrollWidth")
            assert width <= SIZES[size]["width"]
