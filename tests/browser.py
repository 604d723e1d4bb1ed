"""Chromium without a display, and what a test asks of a report in it."""

import json
import shutil
import time

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# What a plot shows, as text.
DRAWN = """
const plot = document.querySelector(`[data-figure=${arguments[0]}] .plot`);
return plot.data ? JSON.stringify(plot.data.map((t) => [t.x, t.y, t.z, t.text, t.hovertext])) : plot.textContent;
"""
# As before printing everything is drawn, not only what is in sight.
DRAW_ALL = "for (const name of ['beforeprint', 'afterprint']) window.dispatchEvent(new Event(name));"
FRAME = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()));"
# All words of a page, those of components inside components too.
WORDS = """
const words = [];
(function walk(node) {
  for (const child of node.childNodes) {
    if (child.nodeType === 3) words.push(child.textContent);
    else if (!["SCRIPT", "STYLE", "TEMPLATE"].includes(child.nodeName)) walk(child);
  }
  if (node.shadowRoot) walk(node.shadowRoot);
})(document.body);
return words;
"""


def start(width=1280, height=900, scheme="light", downloads=None):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    if width < 600:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    if downloads:
        behavior = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    return driver


def opened(driver, path):
    driver.get(path.as_uri())
    driver.execute_script(DRAW_ALL)
    driver.execute_async_script(FRAME)
    return driver


def errors(driver):
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(driver):
    """Addresses that the page asked for, but for itself and what it carries."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"]["url"])
    return [url for url in found if not url.startswith(("file:", "data:", "blob:", "about:"))]


def drawn(driver, figure):
    return driver.execute_script(DRAWN, figure)


def chips(driver, axis):
    return driver.find_elements("css selector", f'#filters [data-axis="{axis}"] .chip input')


def click(driver, element):
    driver.execute_script("arguments[0].click()", element)
    driver.execute_async_script(FRAME)


def fetched(driver, button, place, name):
    """Click a button and return the text of the file that it gives."""
    path = place / name
    path.unlink(missing_ok=True)
    driver.execute_script("arguments[0].click()", button)
    for _ in range(200):
        if path.exists() and path.stat().st_size and not list(place.glob("*.crdownload")):
            return path.read_text(encoding="utf-8")
        time.sleep(0.05)
    raise AssertionError(f"{name} did not come; there are {sorted(p.name for p in place.iterdir())}")


def column(driver, table, title):
    """The texts of one column of a table."""
    heads = driver.find_elements("css selector", f"#{table}-table th")
    place = [head.text.rstrip(" ▲▼") for head in heads].index(title)
    script = "return [...document.querySelectorAll(arguments[0])].map((cell) => cell.textContent)"
    return driver.execute_script(script, f"#{table}-table td:nth-child({place + 1})"), heads[place]
