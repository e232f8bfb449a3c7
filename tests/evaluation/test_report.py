"""The report in a browser, opened from disk, at the width of a desktop and of a phone; and its figures."""

import base64
import dataclasses
import html
import io
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.evaluation.figures import box_plot, draw_agreement, draw_boxes, draw_curve, save_bars, slice_stack
from vamcei_jax.evaluation.metrics import measure
from vamcei_jax.evaluation.report import Case, Predicted, draw_montage, list_empty_masks, pick_cases, write_report
from vamcei_jax.evaluation.statistics import agreement, compare, summarise

PATIENTS = 8
SLICES = 5
HOSTILE = '<img src=x onerror="alert(1)">'  # a patient's name
LOG = [{"stage": "vamcei", "step": step, "loss": 1 / step, "dice": step / 10} for step in range(1, 9)]


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
  write_report(path, "Run <1>", {"Run": "runs/a&b"}, scores, draw_case, log=LOG, config='{"seed": 0}')
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
  assert browser.get_log("browser") == []  # the console


def column(page, number):
  """The cells of a column of the patients' table, as numbers where they are some."""
  rows = page.find_elements(By.CSS_SELECTOR, "#patients-table tbody tr")
  return [row.find_elements(By.TAG_NAME, "td")[number].text for row in rows]


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


def test_the_slider_shows_the_slice_that_it_names(page):
  case = page.find_element(By.CSS_SELECTOR, ".case")
  slider, caption = case.find_element(By.TAG_NAME, "input"), case.find_element(By.TAG_NAME, "output")
  panels = case.find_elements(By.CLASS_NAME, "view")
  assert len(panels) == 3  # image, truth, vamcei
  page.execute_script("arguments[0].scrollIntoView()", case)
  slider.send_keys(Keys.HOME)
  for number in range(SLICES):
    assert caption.text == f"slice {number}"
    for panel in panels:
      pixels = np.asarray(Image.open(io.BytesIO(panel.screenshot_as_png)).convert("L")) / 255
      middle = pixels[len(pixels) // 4 : -len(pixels) // 4, len(pixels) // 4 : -len(pixels) // 4]
      np.testing.assert_allclose(middle, grey(number), atol=0.03)
    slider.send_keys(Keys.ARROW_RIGHT)


def test_nothing_is_fetched_and_names_are_text(page):
  fetched = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
  assert [name for name in fetched if not name.startswith("data:")] == []
  broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
  assert page.execute_script(broken) == 0
  assert page.find_element(By.TAG_NAME, "h1").text == "Run <1>"
  assert HOSTILE in column(page, 0)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_screen(page, predictions, width):
  metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
  page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
  assert page.execute_script("return document.documentElement.scrollWidth") <= width
  page.get(predictions.as_uri())
  assert page.execute_script("return document.documentElement.scrollWidth") <= width


def cells(page, section):
  """The cells of the first table after a heading, row by row."""
  table = page.find_element(By.CSS_SELECTOR, f"#{section} ~ .scroll table")
  rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
  return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]


def test_tables_say_what_was_measured(page, scores):
  summary = summarise(scores["vamcei"])["RV"]["assd_mm"]
  row = next(row for row in cells(page, "summary") if row[:2] == ["vamcei", "RV"])
  assert row[6].split() == [
    *f"{summary['mean']:.2f} ± {summary['std']:.2f}".split(),
    *(f"{summary['median']:.2f}, {summary['worst']:.2f}".split()),
  ]
  result = compare(scores["vamcei"], scores["no_adaptation"])["LV"]["dice"]
  row = next(row for row in cells(page, "comparison") if row[:2] == ["LV", "Dice"])
  assert row[2:] == [str(PATIENTS), f"{result['median_difference']:+.3f}", f"{result['p_value']:.2g}"]
  limits = agreement(scores["vamcei"])["RV volume, ml"]
  row = next(row for row in cells(page, "volumes") if row[0] == "RV volume, ml")
  assert row[1:] == [f"{limits[name]:+.2f}" for name in ("bias", "lower", "upper")]


def test_boxes_are_of_the_patients_values(scores):
  axis = Figure().subplots()
  draw_boxes(axis, scores, "hd95_mm")
  drawn = [scatter.get_offsets()[:, 1].tolist() for scatter in axis.collections]
  expected = [
    [patient[structure]["hd95_mm"] for patient in patients.values()]
    for patients in scores.values()
    for structure in STRUCTURES
  ]
  assert drawn == expected


def test_agreement_is_drawn_over_the_mean(scores):
  axis = Figure().subplots()
  draw_agreement(axis, scores["vamcei"], "Myocardial mass, g")
  masses = lambda metric: [structures["Myo"][metric] for structures in scores["vamcei"].values()]
  pairs = zip(masses("mass_g"), masses("true_mass_g"), strict=True)
  expected = [((predicted + true) / 2, predicted - true) for predicted, true in pairs]
  np.testing.assert_allclose(axis.collections[0].get_offsets(), expected)
  heights = [line.get_ydata()[0] for line in axis.lines]
  assert heights == [0.0, *agreement(scores["vamcei"])["Myocardial mass, g"].values()]


def test_a_curve_is_of_one_stage():
  axis, other = Figure().subplots(), {"stage": "no_adaptation", "step": 4, "loss": 7.0}
  draw_curve(axis, [*LOG, other], "loss", {"vamcei": "C0", "no_adaptation": "C1"})
  assert [list(zip(*line.get_data(), strict=True)) for line in axis.lines] == [
    [(line["step"], line["loss"]) for line in LOG],
    [(4, 7.0)],
  ]


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


def test_a_bar_without_a_standard_deviation_is_drawn(tmp_path):
  save_bars(tmp_path / "bars.png", {"a": {"x": 0.5}, "b": {"x": 0.4}}, {"a": {"x": None}, "b": {"x": 0.1}}, "Dice")
  with Image.open(tmp_path / "bars.png") as picture:
    assert picture.size == (1000, 400)


@pytest.mark.parametrize("name", ["$\\frac$", "_masks", "a&b<c>"])
def test_any_name_of_a_method_is_drawn_as_it_is(scores, name):
  svg = box_plot({name: scores["vamcei"]}, "dice")
  assert html.escape(name, quote=False) in svg


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
    ["sub-01/a.nii.gz", "", "101.2", "80.5", "94.5", "0.810"],
    [HOSTILE, "heart cut; other", "101.2", "80.5", "94.5", "0.420"],
  ]
  assert [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#predictions-table .low")] == ["0.420"]
  assert "with a score below 0.5: 1." in browser.find_element(By.TAG_NAME, "body").text
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
