"""The report in a browser, opened from disk, at the width of a desktop and of a phone; its charts and pictures."""

import base64
import dataclasses
import html
import io
import itertools
import shutil

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.evaluation.charts import BOTTOM, LABELLED, LEFT, RIGHT, TOP, Axis, bland_altman, box_plot, curve
from vamcei_jax.evaluation.figures import COLOURS, outlined, save_bars, save_panels, slice_stack
from vamcei_jax.evaluation.metrics import measure
from vamcei_jax.evaluation.report import (
  Case,
  Predicted,
  draw_montage,
  headline,
  list_changes,
  list_empty_masks,
  pick_cases,
  write_report,
)
from vamcei_jax.evaluation.statistics import agreement, compare, summarise

PATIENTS = 8
SLICES = 5
HOSTILE = '<img src=x onerror="alert(1)">'  # a patient's name
LOG = [{"stage": "vamcei", "step": step, "loss": 1 / step, "dice": step / 10, "ramp": 1.0} for step in range(1, 9)]


def grey(slice_number):
  """The grey value of all images of a slice."""
  return 0.1 + 0.2 * slice_number


def draw_case(name):
  """An image whose grey value tells the number of the slice, and a mask far from its middle."""
  image = np.tile(np.array([grey(z) for z in range(SLICES)], np.float32)[:, None, None], (1, 64, 64))
  mask = np.zeros(image.shape, np.uint8)
  mask[:, 1:60, 1:3] = 1
  mask[:, 1:60, 60:62] = 2
  return Case(image, mask, {"vamcei": mask})


@pytest.fixture(scope="module")
def scores():
  """Two methods' scores of random masks; the last patient has no RV, in truth and predictions."""
  rng, spacing = np.random.default_rng(0), (8.0, 1.25, 1.25)
  names = [f"patient{n}" for n in range(PATIENTS - 1)] + [HOSTILE]
  truths = {name: rng.integers(0, 4, (3, 8, 8)) for name in names}
  truths[HOSTILE][truths[HOSTILE] == 3] = 0
  shares = dict(zip(names, np.linspace(0.1, 0.6, PATIENTS), strict=True))
  noisy = lambda truth, share: np.where(rng.random(truth.shape) < share, rng.integers(0, 3, truth.shape), truth)
  return {
    method: {name: measure(noisy(truth, share * shares[name]), truth, spacing) for name, truth in truths.items()}
    for method, share in (("no_adaptation", 1.0), ("vamcei", 0.5))
  }


@pytest.fixture(scope="module")
def report(scores, tmp_path_factory):
  path = tmp_path_factory.mktemp("report") / "report.html"
  write_report(path, "Run <1>", {"Run": "runs/a&b"}, scores, draw_case, split="test", log=LOG, config='{"seed": 0}')
  return path


@pytest.fixture(scope="module")
def browser():
  chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
  if not chromium or not driver:
    pytest.skip("needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
  options = webdriver.ChromeOptions()
  options.binary_location = chromium
  for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1280,900"):
    options.add_argument(f"--{flag}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
    yield browser


@pytest.fixture
def page(browser, report):
  browser.get(report.as_uri())
  yield browser
  browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
  browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
  assert browser.get_log("browser") == []  # the console


def column(page, number):
  """The cells of a column of the patients' table, as text."""
  return [row[number] for row in table_cells(page, page.find_element(By.ID, "patients-table"))]


def table_cells(page, table):
  """The cells of a table, row by row, in one call: a call for each cell takes seconds."""
  rows = "[...arguments[0].tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.innerText))"
  return [[" ".join(cell.split()) for cell in row] for row in page.execute_script(f"return {rows}", table)]


def click_heading(page, title):
  headings = page.find_elements(By.CSS_SELECTOR, "#patients-table thead button")
  number = [heading.text.split(" ")[0] for heading in headings].index(title)
  page.execute_script("arguments[0].scrollIntoView()", headings[number])
  headings[number].click()
  return number


def test_a_click_on_a_heading_sorts_by_value(page, scores):
  number = click_heading(page, "HD95,")
  by_structure = [values for structures in scores["vamcei"].values() for values in structures.values()]
  values = sorted(metrics["hd95_mm"] for metrics in by_structure)
  assert [float(cell) for cell in column(page, number)] == pytest.approx(values, abs=0.006)
  click_heading(page, "HD95,")
  assert [float(cell) for cell in column(page, number)] == pytest.approx(values[::-1], abs=0.006)
  names = column(page, click_heading(page, "Structure"))
  assert names == sorted(names)


def test_what_is_missing_is_sorted_last(page):
  for _ in range(2):  # up and down
    cells = column(page, click_heading(page, "Mass,"))
    assert all(cells[:PATIENTS])
    assert not any(cells[PATIENTS:])  # LV and RV have none


def greys(case):
  """The grey value in the middle of each panel of a case."""
  for panel in case.find_elements(By.CLASS_NAME, "view"):
    pixels = np.asarray(Image.open(io.BytesIO(panel.screenshot_as_png)).convert("L")) / 255
    yield pixels[len(pixels) // 4 : -len(pixels) // 4, len(pixels) // 4 : -len(pixels) // 4].mean()


def test_the_slider_shows_the_slice_that_it_names_in_all_panels(page):
  case = page.find_element(By.CSS_SELECTOR, ".case")
  slider, caption = case.find_element(By.TAG_NAME, "input"), case.find_element(By.TAG_NAME, "output")
  page.execute_script("arguments[0].scrollIntoView()", case)
  slider.send_keys(Keys.HOME)
  for number in range(SLICES):
    assert caption.text == f"slice {number}"
    np.testing.assert_allclose(list(greys(case)), [grey(number)] * 3, atol=0.03)  # image, truth, vamcei
    slider.send_keys(Keys.ARROW_RIGHT)


def test_arrow_keys_move_the_case_in_the_middle_of_the_window(page):
  first, second = page.find_elements(By.CSS_SELECTOR, ".case")[:2]
  captions = lambda: [case.find_element(By.TAG_NAME, "output").text for case in (first, second)]
  page.execute_script("arguments[0].scrollIntoView({ block: 'center' })", second)
  body = page.find_element(By.TAG_NAME, "body")
  body.send_keys(Keys.ARROW_RIGHT)
  assert captions() == ["slice 2", "slice 3"]
  np.testing.assert_allclose(list(greys(second)), [grey(3)] * 3, atol=0.03)
  for _ in range(SLICES):  # no farther than the first slice
    body.send_keys(Keys.ARROW_LEFT)
  assert captions() == ["slice 2", "slice 0"]
  body.send_keys(Keys.CONTROL, Keys.ARROW_RIGHT)
  assert captions() == ["slice 2", "slice 0"]


def test_nothing_is_fetched_and_names_are_text(page):
  fetched = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
  assert [name for name in fetched if not name.startswith("data:")] == []
  broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
  assert page.execute_script(broken) == 0
  assert "Run <1>" in page.find_element(By.TAG_NAME, "body").text
  assert HOSTILE in column(page, 0)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_screen(page, predictions, width):
  metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
  page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
  page.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
  assert page.execute_script("return document.documentElement.scrollWidth") <= width
  page.get(predictions.as_uri())
  assert page.execute_script("return document.documentElement.scrollWidth") <= width


CONTRAST = """
const luminance = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
  .map((part) => part <= 0.04 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
const paper = luminance(getComputedStyle(document.body).backgroundColor);
return [paper, ...["h1", "p", "a", ".better", ".worse", ".chart text", ".chart polyline", "summary"].map((selector) => {
  const style = getComputedStyle(document.querySelector(selector));
  const property = { ".chart text": "fill", ".chart polyline": "stroke" }[selector] ?? "color";
  const ink = luminance(style[property]);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
})];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_can_be_read_in_light_and_dark(page, scheme):
  scheme_of = lambda value: {"features": [{"name": "prefers-color-scheme", "value": value}]}
  page.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_of(scheme))
  paper, *contrasts = page.execute_script(CONTRAST)
  assert (paper > 0.9) == (scheme == "light")
  assert min(contrasts) >= 4.5  # WCAG 2, AA


def test_paper_is_white_and_nothing_is_cut_or_folded(page):
  dark = [{"name": "prefers-color-scheme", "value": "dark"}]
  page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
  page.execute_cdp_cmd(
    "Emulation.setDeviceMetricsOverride", {"width": 718, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
  )
  page.execute_script("dispatchEvent(new Event('beforeprint'))")
  assert page.execute_script(CONTRAST)[0] == 1.0
  assert page.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
  widths = "return [...document.querySelectorAll('.scroll, pre')].map((each) => [each.scrollWidth, each.clientWidth])"
  assert all(content <= frame for content, frame in page.execute_script(widths))
  assert not any(slider.is_displayed() for slider in page.find_elements(By.CSS_SELECTOR, "input"))
  assert page.find_element(By.CSS_SELECTOR, ".case output").text == "slice 2"
  page.execute_script("dispatchEvent(new Event('afterprint'))")
  assert page.execute_script("return document.querySelectorAll('details[open]').length") == 0


def cells(page, section):
  """The cells of the first table after a heading, row by row."""
  table = page.find_element(By.CSS_SELECTOR, f"#{section} ~ .scroll table")
  return table_cells(page, table)


def test_tables_say_what_was_measured(page, scores):
  summary = summarise(scores["vamcei"])["RV"]["assd_mm"]
  row = next(row for row in cells(page, "summary") if row[:2] == ["vamcei", "RV"])
  assert row[6].split() == [
    *f"{summary['mean']:.2f} ± {summary['std']:.2f}".split(),
    *(f"{summary['median']:.2f}, {summary['worst']:.2f}".split()),
  ]
  result = compare(scores["vamcei"], scores["no_adaptation"])["LV"]["dice"]
  row = next(row for row in cells(page, "comparison") if row[:2] == ["LV", "Dice"])
  dice = lambda method: np.array([structures["LV"]["dice"] for structures in scores[method].values()])
  better, worse = (dice("vamcei") > dice("no_adaptation")).sum(), (dice("vamcei") < dice("no_adaptation")).sum()
  numbers = [f"{result['median_difference']:+.3f}", f"{better}", f"{worse}", f"{result['p_value']:.2g}"]
  assert row[2:] == ["▲ better", *numbers]
  limits = agreement(scores["vamcei"])["RV volume, ml"]
  row = next(row for row in cells(page, "volumes") if row[0] == "RV volume, ml")
  assert row[1:] == [f"{limits[name]:+.2f}" for name in ("bias", "lower", "upper")]


def test_a_larger_error_is_worse_and_said_so_without_colour(page):
  one = lambda dice, error: {name: {"dice": dice, "volume_difference_ml": error} for name in STRUCTURES}
  scores = {"first": {"a": one(0.5, -12.0)}, "second": {"a": one(0.7, 29.0)}}
  changes = list_changes(scores, compare(scores["second"], scores["first"]))
  kinds = [(change.metric, change.title, change.kind) for change in changes[:2]]
  title = "|Volume difference|, ml"
  assert kinds == [("dice", "Dice", "better"), ("volume_difference_ml", title, "worse")]
  assert (changes[1].test["median_difference"], changes[1].better, changes[1].worse) == (17.0, 0, 1)
  assert {row[2] for row in cells(page, "comparison")} <= {"▲ better", "▼ worse", "= equal"}


def scaled(scores, shift):
  """The scores, with each Dice moved."""
  moved = lambda values: values | {"dice": values["dice"] + shift}
  return {name: {each: moved(values) for each, values in structures.items()} for name, structures in scores.items()}


def test_the_headline_is_the_main_result(scores):
  vamcei = scores["vamcei"]
  mean = summarise(vamcei)["mean"]["dice"]["mean"]
  methods = lambda shift: {"first": scaled(vamcei, -shift), "vamcei": vamcei}
  patients = f"{PATIENTS} test patients"
  gain = f"vamcei raises the mean Dice of {patients} from {mean - 0.1:.3f} (first) to {mean:.3f}"
  assert headline(methods(0.1), "test") == gain
  assert " lowers the mean Dice of " in headline(methods(-0.1))
  assert headline(methods(0.0)) == f"vamcei and first have the same mean Dice on {PATIENTS} patients: {mean:.3f}"
  assert headline({"vamcei": vamcei}, "test") == f"vamcei has a mean Dice of {mean:.3f} on {patients}"
  assert (
    headline({}, "train", 1) == "Predictions for 1 training patient. There are no true masks, so there are no scores."
  )


def values_at(axis_values, start, end, places):
  """The values of places on an axis that was made for `axis_values`."""
  axis = Axis(axis_values, start, end)
  return (np.asarray(places) - axis(0.0)) / (axis(1.0) - axis(0.0))


def test_boxes_and_dots_are_of_the_patients_values(scores):
  chart = box_plot(scores, "hd95_mm", {"no_adaptation": 0, "vamcei": 1})
  expected = [
    [patient[structure]["hd95_mm"] for patient in patients.values()]
    for patients in scores.values()
    for structure in STRUCTURES
  ]
  drawn = values_at(np.ravel(expected), BOTTOM, TOP, [dot.y for dot in chart.dots])
  np.testing.assert_allclose(drawn, np.ravel(expected), atol=1e-9)
  assert [box.series for box in chart.boxes] == [0] * 3 + [1] * 3
  middles = values_at(np.ravel(expected), BOTTOM, TOP, [box.median for box in chart.boxes])
  np.testing.assert_allclose(middles, np.median(expected, axis=1), atol=1e-9)
  assert all(box.low >= box.lower >= box.median >= box.upper >= box.high >= TOP for box in chart.boxes)
  assert chart.dots[-1].text == f"{HOSTILE}, vamcei, RV: 0.00"


def test_agreement_is_drawn_over_the_mean(scores):
  chart = next(chart for chart in bland_altman(scores["vamcei"], 1) if chart.x_label.startswith("Myocardial mass, g"))
  masses = lambda metric: np.array([structures["Myo"][metric] for structures in scores["vamcei"].values()])
  means, differences = (masses("mass_g") + masses("true_mass_g")) / 2, masses("mass_g") - masses("true_mass_g")
  limits = list(agreement(scores["vamcei"])["Myocardial mass, g"].values())
  np.testing.assert_allclose(values_at(means, LEFT, LABELLED, [dot.x for dot in chart.dots]), means)
  heights = [*(dot.y for dot in chart.dots), *(rule.y for rule in chart.rules)]
  drawn = values_at([0.0, *differences, *limits], BOTTOM, TOP, heights)
  np.testing.assert_allclose(drawn, [*differences, 0.0, *limits], atol=1e-9)
  assert chart.y_label == "Prediction − truth, g"


def test_a_curve_is_of_one_stage_and_without_what_is_not_finite():
  lines = [
    *LOG,
    {"stage": "no_adaptation", "step": 4, "loss": 7.0},
    {"stage": "vamcei", "step": 9, "loss": float("nan")},
  ]
  chart = curve(lines, "loss", {"no_adaptation": 0, "vamcei": 1})
  vamcei, other = chart.lines
  assert (vamcei.series, other.series, len(other.points)) == (1, 0, 1)
  values = [line["loss"] for line in LOG]
  np.testing.assert_allclose(values_at([*values, 7.0], BOTTOM, TOP, vamcei.points[:, 1]), values, atol=1e-9)
  np.testing.assert_allclose(values_at(range(9), LEFT, RIGHT, vamcei.points[:, 0]), range(1, 9), atol=1e-9)
  assert (chart.x_label, chart.y_label) == ("Training step", "Training loss")
  assert curve([{"stage": "vamcei", "step": 1, "loss": float("inf")}], "loss", {"vamcei": 0}) is None


@pytest.mark.parametrize(
  ("values", "texts"),
  [
    ((0.0, 1.0), ["0", "0.5", "1"]),
    ((3.0, 3.0), ["2.5", "3", "3.5"]),
    ((-12.0, 29.0), ["-20", "0", "20", "40"]),
    ((0.0, 11730.0), ["0", "5000", "10000", "15000"]),
  ],
)
def test_ticks_are_round_and_enclose_the_values(values, texts):
  axis = Axis(values, 0.0, 100.0)
  assert [text for _, text in axis.ticks] == texts
  assert 0.0 <= axis(values[0]) <= axis(values[1]) <= 100.0
  assert (axis.ticks[0][0], axis.ticks[-1][0]) == (0.0, pytest.approx(100.0))


def test_dice_and_loss_come_first_and_all_other_curves_are_folded(page):
  shown = page.find_elements(By.CSS_SELECTOR, "#curves ~ .plots .chart")
  label = lambda chart: chart.get_attribute("aria-label").partition(";")[0]
  assert [label(chart) for chart in shown] == ["Validation Dice, mean of the structures", "Training loss"]
  (folded,) = page.find_elements(By.CSS_SELECTOR, "#curves ~ details .chart")
  assert label(folded) == "ramp"
  assert not folded.is_displayed()


def test_outlines_lie_on_the_edge_of_a_structure_in_its_colour():
  mask = np.zeros((2, 12, 12), np.uint8)
  mask[1, 2:10, 3:9] = 3
  picture = Image.open(io.BytesIO(slice_stack(np.full(mask.shape, 0.5), mask, zoom=4))).convert("RGB")
  pixels = np.asarray(picture, float).reshape(2, 48, 48, 3)
  blue = pixels[..., 2] - pixels[..., 0] > 60
  assert not blue[0].any()
  assert blue[1, 9, 14:34].all()  # the first row of the structure
  assert blue[1, 10:38, 13].all()  # its first column
  assert not blue[1, 16:32, 18:30].any()  # its middle
  assert not blue[1, :7].any()
  np.testing.assert_allclose(pixels[0], 127, atol=6)


def test_a_line_is_drawn_once_where_structures_touch():
  mask = np.zeros((1, 20, 20), np.uint8)
  mask[0, 2:12, 2:12] = 1
  mask[0, 5:9, 5:9] = 2
  mask[0, 2:12, 12:18] = 3
  drawn = outlined(np.zeros(mask.shape), mask, zoom=3)[0]
  row = ["".join(f"{part:02x}" for part in drawn[7 * 3, column]) for column in range(60)]  # through all structures
  name = {colour.removeprefix("#"): structure for structure, colour in COLOURS.items()} | {"000000": ""}
  lines = [(name[colour], len(list(columns))) for colour, columns in itertools.groupby(row)]
  # Between LV and Myo there is only the line of LV, between Myo and RV only that of Myo.
  widths = [
    ("", 6),
    ("Myo", 2),
    ("", 7),
    ("LV", 2),
    ("", 8),
    ("LV", 2),
    ("", 7),
    ("Myo", 2),
    ("", 16),
    ("RV", 2),
    ("", 6),
  ]
  assert lines == widths


def test_panels_without_a_mask_or_of_another_size_are_drawn(tmp_path):
  image, mask = np.full((30, 40), 0.5), np.ones((30, 40), np.uint8)
  save_panels(tmp_path / "panels.png", [[("a", image, None), ("b", image[:9], mask[:9])], [("c", image, mask)]])
  with Image.open(tmp_path / "panels.png") as picture:
    assert picture.size == (480, 500)


def test_a_bar_without_a_standard_deviation_is_drawn(tmp_path):
  save_bars(tmp_path / "bars.png", {"a": {"x": 0.5}, "b": {"x": 0.4}}, {"a": {"x": None}, "b": {"x": 0.1}}, "Dice")
  with Image.open(tmp_path / "bars.png") as picture:
    assert picture.size == (1000, 400)


def test_the_cases_are_the_worst_and_the_best(scores):
  mean_dice = lambda structures: np.mean([values["dice"] for values in structures.values()])
  order = sorted(scores["vamcei"], key=lambda name: mean_dice(scores["vamcei"][name]))
  assert pick_cases(scores["vamcei"]) == order[:4] + order[-2:]
  few = {name: scores["vamcei"][name] for name in order[3:]}
  assert pick_cases(few) == order[3:]


def test_empty_masks_are_named(scores):
  empty = list_empty_masks(scores)
  assert ("vamcei", HOSTILE, "RV", "prediction and truth") in empty
  assert {patient for _, patient, *_ in empty} == {HOSTILE}


def test_one_patient_has_no_standard_deviation_and_definitions_are_in_the_report(scores, tmp_path):
  one = {method: {"patient0": patients["patient0"]} for method, patients in scores.items()}
  write_report(tmp_path / "report.html", "Run", {}, one, draw_case)
  text = html.unescape((tmp_path / "report.html").read_text())
  assert text.count(f"{scores['vamcei']['patient0']['LV']['dice']:.3f} ± –\n") == 1
  assert "the larger of two 95th percentiles" in text


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
  """The report on two predictions without truth."""
  path, volumes = tmp_path_factory.mktemp("predictions") / "report.html", {"LV": 101.25, "Myo": 90.0, "RV": 80.5}
  case = dataclasses.replace(draw_case("a"), truth=None, pixel=(1.0, 2.0))
  montage = draw_montage(case)
  predicted = [
    Predicted("sub-01/a.nii.gz", volumes, 94.5, 0.81, (), montage),
    Predicted(HOSTILE, volumes, 94.5, 0.42, (("heart cut", "touches <the> border"), ("other", "b")), montage),
  ]
  write_report(path, "Predictions", {"Volumes": "in"}, predicted=predicted)
  return path


def test_predictions_have_a_row_and_a_montage_each_and_low_scores_are_marked(browser, predictions):
  browser.get(predictions.as_uri())
  assert cells(browser, "predictions") == [
    ["sub-01/a.nii.gz", "0.810", "101.2", "80.5", "94.5", ""],
    [HOSTILE, "0.420", "101.2", "80.5", "94.5", "heart cut; other"],
  ]
  assert [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#predictions-table .low")] == ["0.420"]
  expected = "2 volumes segmented, 1 with a score below 0.5: look at this mask first"
  assert browser.find_element(By.TAG_NAME, "h1").text == expected
  cases = browser.find_elements(By.CSS_SELECTOR, ".case")
  assert [case.find_element(By.TAG_NAME, "h3").text for case in cases] == ["sub-01/a.nii.gz", HOSTILE]
  assert "heart cut: touches <the> border" in cases[1].text
  assert not browser.find_elements(By.CSS_SELECTOR, "#summary, #patients, input")
  assert browser.get_log("browser") == []


def test_each_tile_of_a_montage_is_a_whole_slice(browser, predictions):
  browser.get(predictions.as_uri())
  tiles = browser.find_elements(By.CSS_SELECTOR, "#case-1 .tile")
  assert len(tiles) == SLICES
  for number, tile in enumerate(tiles):
    assert tile.get_attribute("title") == f"slice {number}"
    assert tile.size["width"] / tile.size["height"] == pytest.approx(2.0, rel=0.03)  # pixels of 1 x 2
    pixels = np.asarray(Image.open(io.BytesIO(tile.screenshot_as_png)).convert("L")) / 255
    middle = pixels[3:-3, len(pixels[0]) // 4 : -len(pixels[0]) // 4]
    np.testing.assert_allclose(middle, grey(number), atol=0.03)


def test_slices_around_the_heart_keep_their_numbers(tmp_path):
  mask = np.zeros((12, 30, 30), np.uint8)
  mask[5:8, 10:20, 10:20] = 2
  load = lambda name: Case(np.zeros(mask.shape), mask, {"a": mask})
  write_report(tmp_path / "report.html", "Run", {}, load_case=load, names=["p"])
  assert 'data-slices="4 5 6 7 8"' in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("shape", "box"), [((3, 700, 900), None), ((60, 40, 40), (5, 9)), ((1, 8, 8), (0, 8))])
def test_a_montage_is_small_and_shows_slices_without_a_mask(shape, box):
  mask = np.zeros(shape, np.uint8)
  if box:
    mask[0, slice(*box), slice(*box)] = 1
  montage = draw_montage(Case(None, None, {"a": mask}))
  picture = Image.open(io.BytesIO(base64.b64decode(montage.source.partition(",")[2])))
  assert montage.slices[0] == 0
  assert montage.slices[-1] == shape[0] - 1
  assert len(montage.slices) == min(shape[0], 40)
  assert max(picture.width, picture.height / len(montage.slices)) <= 320


def test_without_truth_there_are_pictures_and_curves_alone(tmp_path):
  write_report(tmp_path / "report.html", "Run", {}, {}, draw_case, names=["a", "b"], log=LOG)
  text = (tmp_path / "report.html").read_text()
  assert text.count('class="case"') == 2
  assert 'id="curves"' in text
  assert 'id="summary"' not in text
