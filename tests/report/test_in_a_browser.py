"""The page in chromium: the threshold dragged, typed and chosen; dark, narrow and on paper; no error and no request."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import browser
from facelit.report.set_figures import SetFigures
from facelit.tools.report import report
from simulated_scores import simulated, write_log, write_scores

_DRAWN = """
const done = arguments[0], charts = [...document.querySelectorAll("[data-chart]")].slice(0, 3);
const wait = () => charts.every((one) => Number(one.dataset.width) === one.clientWidth && one.querySelector(".main-svg"))
  ? requestAnimationFrame(() => requestAnimationFrame(() => done())) : requestAnimationFrame(wait);
wait();
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Iterator[Any]:
    """A browser that shows the report of two checkpoints and a run."""
    folder = tmp_path_factory.mktemp("report")
    with browser(folder / "profile", 1400) as one:
        for seed, name in enumerate(("first", "<b>second</b>")):
            write_scores(folder / "suites" / name.replace("/", "_"), simulated("lfw", seed, faces))
        run = write_log(folder / "run", "step,train/loss,lfw/accuracy\n10,2,0.7\n20,1,0.9\n")
        report([str(folder / "suites"), str(run)], str(folder / "out"))
        one.get((folder / "out" / "index.html").as_uri())
        one.execute_async_script(_DRAWN)
        yield one


def shown(driver: Any) -> dict[str, str]:
    script = "return Object.fromEntries([...document.querySelectorAll('[data-figure]')].map((one) => [one.dataset.figure, one.textContent]))"
    figures: dict[str, str] = driver.execute_script(script)
    return figures


def threshold_of(driver: Any) -> float:
    return float(driver.execute_script("return document.querySelector('input[type=number]').valueAsNumber"))


def expected(seed: int, threshold: float) -> dict[str, str]:
    """From the curve of `evaluate_pairs`, at the first of its thresholds that is not below."""
    result = simulated("lfw", seed).evaluate()
    place = int((result.roc.thresholds >= threshold).sum()) - 1
    accepted = round(result.roc.tar[place] * 200), round(result.roc.far[place] * 200)

    def rate(count: int, total: int) -> str:
        return str(count // total) if count in (0, total) else f"{count / total:.4f}"

    return {
        "genuine-accepted": str(accepted[0]),
        "genuine-rejected": str(200 - accepted[0]),
        "impostor-accepted": str(accepted[1]),
        "impostor-rejected": str(200 - accepted[1]),
        "tar": rate(accepted[0], 200),
        "frr": rate(200 - accepted[0], 200),
        "far": rate(accepted[1], 200),
        "accuracy": rate(accepted[0] + 200 - accepted[1], 400),
    }


def test_the_threshold_is_dragged_and_the_figures_follow(driver: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    assert threshold_of(driver) == SetFigures(simulated("lfw", 1)).presets["best accuracy"]  # "<b>second" sorts first
    assert shown(driver) == expected(1, threshold_of(driver))
    histogram = driver.find_element(By.CSS_SELECTOR, "[data-set] [data-chart]")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", histogram)
    seen = []
    drag = ActionChains(driver, duration=20).move_to_element_with_offset(histogram, -60, 0).click_and_hold()
    drag.perform()
    for _ in range(3):
        ActionChains(driver, duration=20).move_by_offset(45, 0).perform()
        seen.append(threshold_of(driver))
        assert shown(driver) == expected(1, seen[-1])
    ActionChains(driver).release().perform()
    assert seen[0] < seen[1] < seen[2]
    ActionChains(driver, duration=20).move_by_offset(-200, 0).perform()  # no longer held
    assert threshold_of(driver) == seen[2]
    slider = driver.find_element(By.CSS_SELECTOR, "input[type=range]")
    slider.send_keys("\ue012")  # the left arrow: one step
    assert threshold_of(driver) == pytest.approx(seen[2] - 1e-4, abs=1e-9)
    assert shown(driver) == expected(1, threshold_of(driver))


def test_the_threshold_is_typed_and_chosen_for_either_checkpoint(driver: Any) -> None:
    script = """
    const number = document.querySelector("input[type=number]");
    number.value = arguments[0];
    number.dispatchEvent(new Event("change"));
    """
    for typed, taken in ((0.31234, 0.3123), (-0.9, -0.9), (5, 5.0)):
        driver.execute_script(script, typed)
        assert threshold_of(driver) == taken
        assert shown(driver) == expected(1, taken)
    driver.execute_script("document.querySelectorAll('[name^=checkpoint]')[1].click()")
    presets = SetFigures(simulated("lfw", 0)).presets
    buttons = driver.execute_script(
        "return [...document.querySelectorAll('[data-presets] button')].map((one) => one.textContent)"
    )
    assert buttons == list(presets)
    for place, threshold in enumerate(presets.values()):
        driver.execute_script("document.querySelectorAll('[data-presets] button')[arguments[0]].click()", place)
        assert threshold_of(driver) == threshold
        assert shown(driver) == expected(0, threshold)
    driver.execute_async_script(_DRAWN)
    marker = driver.execute_script("return document.querySelector('[data-chart=roc-0]').data.at(-1)")
    result = simulated("lfw", 0).evaluate()
    place = int((result.roc.thresholds >= threshold).sum()) - 1
    assert (marker["x"], marker["y"]) == ([result.roc.far[place]], [result.roc.tar[place]])


def test_dark_narrow_and_on_paper(driver: Any) -> None:
    def colour() -> Any:
        driver.execute_async_script(_DRAWN)
        return driver.execute_script("return document.querySelector('[data-chart] .xtick text').style.fill")

    light = colour()
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert colour() != light
    phone = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    driver.execute_async_script(_DRAWN)
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    paper = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert paper.startswith(b"%PDF")
    assert driver.execute_script("return document.documentElement.className") == ""  # and back to the screen
    charts = driver.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].every((one) => one.dataset.width)"
    )
    assert charts  # those that nobody had scrolled to were drawn for the paper


def test_no_error_and_no_request(driver: Any) -> None:
    """Last: whatever the tests above did is in the console."""
    assert driver.get_log("browser") == []
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert (
        driver.execute_script("return document.querySelectorAll('main b b, main img:not([src^=\"data:\"])').length")
        == 0
    )
    assert np.all([name in driver.page_source for name in ("first", "&lt;b&gt;second")])
